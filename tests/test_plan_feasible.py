"""A plan is one that `train` accepts: unusual volumes are planned, prepared, and brought to the first step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medcyclegan import config, factory, plan
from medcyclegan.errors import InputError
from medcyclegan.factory.cohorts import resolve
from medcyclegan.plan import make

CPU = plan.Machine("cpu", "processor with 2 cores", 16 * plan.GIB, False, 2)
LARGE = plan.hypothetical_gpu(141)


def volume(
    folder: Path, name: str, shape: tuple[int, ...], spacing: tuple[float, ...], *, ct: bool, shear: float
) -> None:
    """An ellipse of tissue with a bright rim and a dark core in air, the same in every slice but for its size."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij")
    radius = np.hypot(x, y) / (0.85 - 0.1 * np.abs(z))
    levels = (-1000, 40, 700, 20) if ct else (3, 300, 60, 500)
    values = np.select([radius > 1, radius > 0.85, radius > 0.7], [levels[0], levels[1], levels[2]], levels[3])
    values = values + np.random.default_rng(len(name)).normal(0, 4, shape)
    affine = np.diag([*spacing, 1.0])
    affine[1, 2] = shear * spacing[2]
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.int16), affine), folder / f"{name}.nii.gz")


def cohort(folder: Path, a: dict[str, Any], b: dict[str, Any]) -> config.Experiment:
    for domain, given in (("a", a), ("b", b)):
        for number in range(given.get("count", 2)):
            name = f"{domain}{number}"
            volume(
                folder / domain, name, given["shape"], given["spacing"], ct=domain == "b", shear=given.get("shear", 0.0)
            )
    data = {"a": str(folder / "a"), "b": str(folder / "b")}
    return config.parse({"data": data}, "the test")


def accept(made: plan.Plan, folder: Path) -> None:
    """Everything that `train` asks before its first step, of the plan as it is written."""
    plan.save(made, folder / "plan.yaml")
    experiment = config.load(folder / "plan.yaml")
    prepared = factory.prepare(experiment, folder / "prepared")
    assert not prepared.failed
    factory.make_trainer(factory.Training(resolve(experiment, prepared), prepared, folder / "run", torch.device("cpu")))


SLAB = {"shape": (46, 52, 4), "spacing": (4.0, 4.0, 1.0)}
HEAD = {"shape": (46, 52, 24), "spacing": (4.0, 4.0, 6.0)}
TINY = {"shape": (12, 10, 6), "spacing": (1.5, 1.2, 3.0)}
COHORTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "four slices of 1 mm": (SLAB, SLAB),
    "a slab against heads": (SLAB, HEAD),
    "two slices": ({**SLAB, "shape": (46, 52, 2)}, {**SLAB, "shape": (46, 52, 3)}),
    "one volume of each": ({**HEAD, "count": 1}, {**SLAB, "count": 1}),
    "long voxels": ({"shape": (64, 16, 64), "spacing": (0.9375, 8.0, 0.9375)}, HEAD),
    "tiny": (TINY, {"shape": (24, 24, 8), "spacing": (1.5, 1.5, 1.5)}),
    "tiny against heads": (TINY, HEAD),
    "sheared": ({**SLAB, "shear": 0.6}, {**HEAD, "shear": 0.3}),
}


@pytest.fixture(autouse=True)
def _not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked here is no matter of time or memory."""
    monkeypatch.setattr(factory, "measure_step", lambda *_: factory.StepTime(0.1, 0.08, 0.2, 7))
    monkeypatch.setattr(factory, "predict_memory", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("name", "machine"),
    [*((name, CPU) for name in COHORTS), *((name, LARGE) for name in ("two slices", "one volume of each", "tiny"))],
)
def test_a_plan_is_accepted_by_train(name: str, machine: plan.Machine, tmp_path: Path) -> None:
    made = make.make_plan(cohort(tmp_path, *COHORTS[name]), machine)
    # Narrow, so that making the networks takes no time; what is accepted does not depend on it.
    made.content["model"]["generator"]["filters"] = made.content["model"]["discriminator"]["filters"] = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accept(made, tmp_path)


def test_pictures_are_planned_as_the_single_slices_that_they_are(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for domain in ("a", "b"):
        (tmp_path / domain).mkdir()
        for number in range(2):
            across = np.hypot(*np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 70)))
            shown = np.where(across < 0.85, 90 + 60 * (across < 0.5), 2) + random.integers(0, 8, across.shape)
            Image.fromarray(shown.astype(np.uint8)).save(tmp_path / domain / f"{domain}{number}.png")
    domains = {"a": {"name": "T1", "modality": "MR"}, "b": {"name": "T2", "modality": "MR"}}
    data = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    made = make.make_plan(config.parse({"domains": domains, "data": data}, "the test"), LARGE)
    assert made.content["preparation"]["spacing"] == [1.0, 1.0, 1.0]
    assert "neighbors" not in made.content["patches"] and made.content["training"]["batch_size"] == 2
    made.content["model"]["generator"]["filters"] = made.content["model"]["discriminator"]["filters"] = 4
    accept(made, tmp_path)


def test_the_plan_names_its_data_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort(tmp_path, SLAB, SLAB)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    experiment = config.parse({"data": {"a": "a", "b": "b", "skip_failed": True}}, "the test")
    plan.save(make.make_plan(experiment, LARGE), tmp_path / "elsewhere" / "plan.yaml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = config.load(Path("plan.yaml")).data
    assert (data.a, data.b, data.skip_failed) == (tmp_path / "a", tmp_path / "b", True)
    (tmp_path / "prepared.json").touch()
    with pytest.raises(InputError, match=r"the volumes themselves are needed, and .* is a prepared folder"):
        make.make_plan(config.parse({"data": {"source": str(tmp_path)}}, "the test"), LARGE)


def test_time_is_told_with_its_spread() -> None:
    made = plan.Plan("x", {"training": {"steps": 6000}}, step_time=factory.StepTime(0.25, 0.2, 0.35, 12))
    assert made.seconds == (1200, 1500, 2100)
    time = plan.expected_time(made)
    assert time.startswith("about 20 to 35 minutes on this machine, as busy as it is now.") and "12 steps" in time
    assert "0.25 s in the median and 0.2 to 0.35 s" in time


def test_a_volume_much_thinner_than_the_others_is_named(tmp_path: Path) -> None:
    experiment = cohort(tmp_path, {**HEAD, "count": 3}, HEAD)
    volume(tmp_path / "a", "localizer", (46, 52, 2), (4.0, 4.0, 1.0), ct=False, shear=0.0)
    made = make.make_plan(experiment, LARGE)
    assert made.content["preparation"]["spacing"][2] == 0.5
    assert any("1 of 6 volumes" in line and "localizer" in line for line in made.warnings)
