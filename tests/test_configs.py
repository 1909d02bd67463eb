"""Every shipped experiment is short, valid, and trains two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcyclegan import config, factory, phantom
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.training.checkpoint import load_checkpoint

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
# The networks keep their architecture and lose their width, so that two steps take seconds.
NARROW = ["model.generator.filters=4", "model.discriminator.filters=4", "training.steps=2", "training.workers=0"]


WINDOW = {2: (64, 64), 3: (32, 32, 24)}


@pytest.fixture(scope="module")
def pairs(cohort: phantom.Cohort, tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    """The test head in both domains, for what learns from pairs."""
    data = {"a": str(cohort.test_mr[0].parent), "b": str(cohort.test_ct[0].parent)}
    return factory.prepare(config.parse({"data": data}, "the test"), tmp_path_factory.mktemp("pairs") / "prepared")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_trains_two_steps(path: Path, prepared: PreparedCohort, pairs: PreparedCohort, tmp_path: Path) -> None:
    experiment = config.load(path, NARROW)
    assert experiment.preparation.spacing is not None
    paired = experiment.objective["_target_"] == "pix2pix"
    window = WINDOW[experiment.patches.spatial_dims]
    onto_cohort = experiment.model_copy(
        update={
            "data": config.Data(source=(pairs if paired else prepared).folder),
            "preparation": config.Preparation(),
            "patches": experiment.patches.model_copy(update={"size": window}),
        }
    )
    result = factory.train(onto_cohort, tmp_path / "run", device="cpu")
    content = load_checkpoint(result.run)
    assert content["step"] == 2
    assert content["experiment"]["model"]["generator"]["_target_"] == experiment.model.generator["_target_"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_is_short_and_says_how_to_run_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert any(line.startswith("# medcyclegan train configs/" + path.name) for line in lines)


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 9
