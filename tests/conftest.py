"""What many tests need: a small phantom cohort, its prepared form, and a tiny experiment on it."""

from __future__ import annotations

import os

# One thread for each test and each process that it begins, set before a library looks: the data are so small that
# threads only wait for each other, on a busy machine for ten times as long as the work takes.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medcyclegan import config, factory, phantom
from medcyclegan.data.prepared import PreparedCohort

TINY: dict[str, Any] = {
    "model": {"generator": {"filters": 4, "blocks": 1}, "discriminator": {"filters": 4, "layers": 1}},
    "objective": {"pool_size": 2},
    "training": {"steps": 4, "log_every": 1, "picture_every": 2, "checkpoint_every": 2, "precision": "float32"},
    "patches": {"size": [32, 32]},
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The campaign runs where `-m` names it, and nowhere else: neither by default nor with `-m "not slow"`."""
    if "campaign" not in config.getoption("-m"):
        left_out = [item for item in items if item.get_closest_marker("campaign")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session", autouse=True)
def _memory_is_predicted_once() -> Iterator[None]:
    """For experiments that differ in nothing that takes memory, since every prediction takes a second."""
    known: dict[str, Any] = {}
    predict = factory.predict_memory

    def remembered(experiment: config.Experiment, **where: Any) -> Any:
        content = experiment.model_dump_json(include={"model", "objective", "losses", "patches", "domains"})
        key = f"{content} {experiment.training.batch_size} {where}"
        if known.get(key) is None:  # what cannot be predicted is told again
            known[key] = predict(experiment, **where)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (factory, factory.trainers):
            patch.setattr(module, "predict_memory", remembered)
        yield


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> phantom.Cohort:
    """Two MR and two CT of different phantom heads, and one with both; 36 x 44 x 20 voxels of 6 x 6 x 8 mm."""
    return phantom.write_cohort(
        tmp_path_factory.mktemp("cohort") / "phantoms",
        seed=3,
        train_mr=2,
        train_ct=2,
        test=1,
        spacing_mm=(6.0, 6.0, 8.0),
        shape=(36, 44, 20),
    )


@pytest.fixture(scope="session")
def prepared(cohort: phantom.Cohort, tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    """The cohort on its working grid, with the test case as a validation pair."""
    folder = tmp_path_factory.mktemp("prepared")
    pairs = folder / "pairs.csv"
    pairs.write_text(f"case,a,b,mask\nhead,{cohort.test_mr[0]},{cohort.test_ct[0]},{cohort.test_mask[0]}\n")
    data = {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent), "pairs": str(pairs)}
    return factory.prepare(config.parse({"data": data}, "the test"), folder / "prepared")


@pytest.fixture
def experiment(prepared: PreparedCohort) -> config.Experiment:
    """Four steps of tiny networks in float32."""
    return config.parse({**TINY, "data": {"source": str(prepared.folder)}}, "the test")


@pytest.fixture(scope="session")
def run(prepared: PreparedCohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny experiment."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    experiment = config.parse({**TINY, "data": {"source": str(prepared.folder)}}, "the test")
    factory.train(experiment, folder, device="cpu")
    return folder
