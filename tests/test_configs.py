"""Every shipped experiment is short, valid, and trains two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcyclegan import build, config
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.training.checkpoint import load_checkpoint

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
# The networks keep their architecture and lose their width, so that two steps take seconds.
NARROW = ["model.generator.filters=4", "model.discriminator.filters=4", "training.steps=2", "training.workers=0"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_trains_two_steps(path: Path, prepared: PreparedCohort, tmp_path: Path) -> None:
    experiment = config.load(path, NARROW)
    assert experiment.preparation.spacing is not None
    onto_cohort = experiment.model_copy(
        update={
            "data": config.Data(prepared=prepared.folder),
            "preparation": config.Preparation(),
            "patches": experiment.patches.model_copy(update={"size": (64, 64)}),
        }
    )
    result = build.train(onto_cohort, tmp_path / "run", device="cpu")
    content = load_checkpoint(result.run)
    assert content["step"] == 2
    assert content["experiment"]["model"]["generator"]["_target_"] == experiment.model.generator["_target_"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_is_short_and_says_how_to_run_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert any(line.startswith("# medcyclegan train configs/" + path.name) for line in lines)


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 2
