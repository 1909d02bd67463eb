"""The optional steps from the config to the cache, the checkpoint and the conversion: everywhere the same."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from monai.data import MetaTensor

from medcyclegan import config, factory, phantom
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.transforms.pipeline import Preparation, landmark_shares, preparation_transform, prepare, restore

STEPS = {
    "mr_n4_shrink": 2,
    "mr_standardization": "nyul",
    "crop_margin": 12.0,
    "interpolation": "bspline",
    "spacing": [6.5, 6.0, 8.0],
}


def experiment(cohort: phantom.Cohort, **preparation: object) -> config.Experiment:
    data = {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent)}
    return config.parse({**TINY, "data": data, "preparation": preparation}, "the test")


@pytest.fixture(scope="module")
def stepped(cohort: phantom.Cohort, tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    return factory.prepare(experiment(cohort, **STEPS), tmp_path_factory.mktemp("steps") / "prepared")


def test_conversion_prepares_as_training_did_from_the_checkpoint_alone(
    cohort: phantom.Cohort, stepped: PreparedCohort, tmp_path: Path
) -> None:
    made = config.parse({**TINY, "data": {"source": str(stepped.folder)}}, "the test")
    run = factory.train(made, tmp_path / "run", device="cpu").run
    shutil.copytree(run, tmp_path / "elsewhere" / "run")
    translator = factory.load_translator(tmp_path / "elsewhere" / "run", device="cpu")
    preparation = translator.source.preparations[0]
    assert preparation == stepped.preparations["a"][0]
    assert (preparation.mr_n4_shrink, preparation.crop_margin, preparation.interpolation) == (2, 12.0, "bspline")
    assert len(preparation.mr_landmarks) == 9 and stepped.preparations["b"][0].mr_landmarks == ()
    for stored in stepped.cases["a"]:
        case = translator.read(stored.image_files[0]).case
        assert case.channels[0].scaler == stored.channels[0].scaler and case.grid.matches(stored.grid)
        np.testing.assert_allclose(case.image, np.asarray(stored.image), atol=0.5 / 32767 + 1e-6)
        np.testing.assert_array_equal(case.body, stored.body)
        result = translator(stored.image_files[0])
        assert result.grid.matches(stored.source_grid) and result.array.dtype == np.int16
        cut = [low > 0 for low in result.array.min(axis=(0, 1)) + 1024]
        assert not all(cut)  # what was cut off came back as air


def test_each_step_changes_what_it_should(cohort: phantom.Cohort, stepped: PreparedCohort, tmp_path: Path) -> None:
    plain = factory.prepare(experiment(cohort, spacing=STEPS["spacing"]), tmp_path / "plain")
    smaller = []
    for group in ("a", "b"):
        for before, after in zip(plain.cases[group], stepped.cases[group], strict=True):
            # The box is the body's with 12 mm around, as far as the volume goes, and no voxel of body is lost.
            smaller.append(np.prod(after.grid.shape) < np.prod(before.grid.shape))
            assert after.body.sum() == before.body.sum()
            occupied = np.argwhere(after.body)
            for axis, step in enumerate(after.grid.spacing):
                room = min(occupied[:, axis].min(), after.grid.shape[axis] - 1 - occupied[:, axis].max())
                assert room <= np.ceil(12 / step)
            offset = np.linalg.inv(before.grid.affine) @ after.grid.affine
            np.testing.assert_allclose(offset[:3, :3], np.eye(3), atol=1e-9)
            np.testing.assert_allclose(offset[:3, 3], np.rint(offset[:3, 3]), atol=1e-6)
    assert any(smaller)


def test_settings_that_stay_cost_nothing_and_another_volume_moves_the_landmarks(
    cohort: phantom.Cohort, tmp_path: Path
) -> None:
    for name, files in (("mr", cohort.train_mr), ("ct", cohort.train_ct)):
        (tmp_path / name).mkdir()
        for file in files:
            shutil.copy(file, tmp_path / name)
    data = {"a": str(tmp_path / "mr"), "b": str(tmp_path / "ct")}
    made = config.parse(
        {**TINY, "data": data, "preparation": {"mr_standardization": "nyul", "spacing": [6, 6, 8]}}, "the test"
    )
    first = factory.prepare(made, tmp_path / "prepared")
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "prepared").rglob("image.npy")}
    again = factory.prepare(made, tmp_path / "prepared")
    assert again.preparations == first.preparations
    assert stamps == {f: f.stat().st_mtime_ns for f in (tmp_path / "prepared").rglob("image.npy")}
    shutil.copy(cohort.test_mr[0], tmp_path / "mr" / "further.nii.gz")
    more = factory.prepare(made, tmp_path / "prepared")
    assert more.preparations["a"][0].mr_landmarks != first.preparations["a"][0].mr_landmarks
    changed = {f.parent.parent.name for f, stamp in stamps.items() if f.stat().st_mtime_ns != stamp}
    assert changed == {"a"}  # CT has no landmarks


@pytest.mark.slow
def test_two_processes_make_what_one_makes(cohort: phantom.Cohort, stepped: PreparedCohort, tmp_path: Path) -> None:
    factory.prepare(experiment(cohort, **STEPS), tmp_path / "prepared", workers=2)
    files = [f.relative_to(stepped.folder) for f in stepped.folder.rglob("*") if f.is_file()]
    assert len(files) == 15  # four cases of three files, landmarks.json, prepared.json and the lock
    for file in files:
        assert (tmp_path / "prepared" / file).read_bytes() == (stepped.folder / file).read_bytes(), file


def test_training_refuses_a_cohort_with_failures_unless_told(cohort: phantom.Cohort, tmp_path: Path) -> None:
    (tmp_path / "mr").mkdir()
    shutil.copy(cohort.train_mr[0], tmp_path / "mr")
    (tmp_path / "mr" / "broken.nii.gz").write_bytes(b"no volume")
    data = {"a": str(tmp_path / "mr"), "b": str(cohort.train_ct[0].parent)}
    made = factory.prepare(config.parse({**TINY, "data": data}, "the test"), tmp_path / "prepared")
    assert set(made.failed) == {"a/broken"} and len(made.cases["a"]) == 1
    given = {**TINY, "data": {"source": str(made.folder)}}
    with pytest.raises(InputError, match=r"(?s)data\.skip_failed.*a/broken"):
        factory.train(config.parse(given, "the test"), tmp_path / "refused", device="cpu")
    given["data"]["skip_failed"] = True
    with pytest.warns(UserWarning, match="not trained on"):
        result = factory.train(config.parse(given, "the test"), tmp_path / "run", device="cpu")
    assert result.step == 4 and set(result.left_out) == {"a", "b"}
    assert all(0 <= share < 0.5 for share in result.left_out.values())


SHAPE, SPACING = (24, 20, 18), (2.0, 2.5, 3.0)


def scan(order: tuple[int, ...], degrees: float = 10.0) -> tuple[MetaTensor, Grid]:
    index = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2
    head = ((index / np.array([7, 6, 5])) ** 2).sum(-1) <= 1
    values = np.random.default_rng(0).uniform(-200, 2500, SHAPE)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[:, list(order)] * SPACING * np.array([1, -1, 1])
    array = np.where(head, values, -1000).astype(np.float32)
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine)), Grid(SHAPE, affine)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_cropping_loses_nothing_on_the_way_back(order: tuple[int, ...]) -> None:
    volume, _ = scan(order)
    whole, cropped = (prepare([volume], [Preparation("CT", (2.2, 2.2, 2.2), crop_margin=m)]) for m in (None, 4.0))
    assert np.prod(cropped.image.shape) < 0.7 * np.prod(whole.image.shape)
    first, second = (restore(c.image[0], c.grid, c.source_grid, c.channels[0].scaler, c.body) for c in (whole, cropped))
    np.testing.assert_allclose(first, second, atol=0.01)
    steps = preparation_transform(Preparation("CT", (2.2, 2.2, 2.2), crop_margin=4.0), has_body=False)
    back = steps.inverse(steps({"image": volume}))["image"]
    assert back.shape == volume.shape
    torch.testing.assert_close(back.affine, volume.affine.to(back.affine), atol=1e-6, rtol=0)
    unbodied = restore(cropped.image[0], cropped.grid, cropped.source_grid, cropped.channels[0].scaler)
    np.testing.assert_allclose(back.numpy()[0], unbodied, atol=0.01)


def test_bspline_is_sharper_and_stays_in_range() -> None:
    grid = Grid((20, 20, 20), np.diag([3.0, 3.0, 3.0, 1.0]))
    world = np.moveaxis(np.indices(grid.shape), 0, -1) * 3.0
    body = np.ones(grid.shape, bool)

    def wave(at: np.ndarray) -> np.ndarray:
        return np.asarray(500 + 500 * np.sin(at / 4.5).prod(-1))

    errors = {}
    for name in ("linear", "bspline"):
        volume = MetaTensor(
            torch.from_numpy(wave(world).astype(np.float32))[None], affine=torch.from_numpy(grid.affine)
        )
        case = prepare([volume], [Preparation("CT", (2.0, 2.0, 2.0), interpolation=name)], body)
        there = np.moveaxis(np.indices(case.grid.shape), 0, -1) * 2.0 + case.grid.affine[:3, 3]
        inner = (slice(4, -4),) * 3
        errors[name] = np.abs(case.channels[0].scaler.undo(case.image[0]) - wave(there))[inner].mean()
        assert case.image.min() >= -1 and case.image.max() <= 1
    assert errors["bspline"] < 0.5 * errors["linear"]
    step = np.where(world[..., 0] < 30, -1024.0, 3071.0).astype(np.float32)
    volume = MetaTensor(torch.from_numpy(step)[None], affine=torch.from_numpy(grid.affine))
    case = prepare([volume], [Preparation("CT", (2.0, 2.0, 2.0), interpolation="bspline")], body)
    assert case.image.min() == -1 and case.image.max() == 1  # a cubic overshoots at a step; it is clipped


def test_landmark_shares_are_those_of_the_corrected_volume_in_the_body(cohort: phantom.Cohort) -> None:
    from medcyclegan.io.reader import read_mask, read_volume
    from medcyclegan.transforms.bias import correct_bias
    from medcyclegan.transforms.standardization import decile_shares

    volume = read_volume(cohort.test_mr[0])
    grid = Grid(tuple(volume.shape[1:]), volume.affine.numpy())
    body = read_mask(cohort.test_mask[0], grid)
    corrected = correct_bias(volume.numpy()[0], body, grid.spacing.tolist(), 2)
    given = Preparation("MR", (6.0, 6.0, 8.0), mr_n4_shrink=2, mr_standardization="nyul")
    np.testing.assert_allclose(landmark_shares([volume], [given], body)[0], decile_shares(corrected, body), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation"),
        ({"mr_standardization": "z-score"}, "mr_standardization"),
        ({"mr_n4_shrink": -1}, "mr_n4_shrink"),
        ({"crop_margin": -2.0}, "crop_margin"),
    ],
)
def test_what_is_not_allowed_is_told(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.parse({"preparation": given}, "the test")
    with pytest.raises(InputError, match=message):
        Preparation("MR", (1.0, 1.0, 1.0), **given)
