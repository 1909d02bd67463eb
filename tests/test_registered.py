"""Pairs that do not lie on each other: a known motion is undone, and what cannot be trusted is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor
from prepared_cohorts import prepare
from scipy import ndimage

from medcyclegan import phantom
from medcyclegan.cohort.cases import Case, Cohort
from medcyclegan.data.registered import register_onto
from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.io.writer import write_volume
from medcyclegan.transforms.geometry import resample

TURN = np.radians(4.0)
MOTION = np.array(  # where the patient lay in the other scanner: turned about the long axis, and 9, -7, 60 mm off
    [[np.cos(TURN), -np.sin(TURN), 0, 9.0], [np.sin(TURN), np.cos(TURN), 0, -7.0], [0, 0, 1, 60.0], [0, 0, 0, 1]]
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> phantom.Cohort:
    """One head with both scans, 5 mm."""
    folder = tmp_path_factory.mktemp("pair") / "phantoms"
    return phantom.write_cohort(
        folder, seed=8, train_mr=1, train_ct=1, test=1, spacing_mm=(5.0, 5.0, 5.0), shape=(44, 52, 44)
    )


def moved(ct: MetaTensor) -> MetaTensor:
    """The same patient scanned elsewhere: world coordinates that went through `MOTION`."""
    affine = torch.from_numpy(MOTION @ grid_of(ct).affine)
    return MetaTensor(ct.as_tensor().clone(), affine=affine)


def test_a_known_motion_is_undone(scans: phantom.Cohort) -> None:
    mr, ct = read_volume(scans.test_mr[0]), read_volume(scans.test_ct[0])
    found, covered, picture, record = register_onto(mr, moved(ct), ("MR", "CT"))
    grid = grid_of(mr)
    assert grid_of(found).matches(grid)
    inside = ndimage.binary_erosion(read_volume(scans.test_mask[0]).numpy()[0] > 0, iterations=2) & covered
    truth = resample(ct.numpy()[0], grid_of(ct), grid, fill=-1024)
    unmoved = resample(moved(ct).numpy()[0], grid_of(moved(ct)), grid, fill=-1024)
    error = np.abs(found.numpy()[0] - truth)[inside].mean()
    # A turn by 1 degree at 80 mm or a shift by 1.4 mm would cost about as much as interpolation does.
    assert error < 60 and error < 0.25 * np.abs(unmoved - truth)[inside].mean()
    np.testing.assert_allclose(record["shift_mm"][2], 60, atol=1.5)
    assert record["rotation_degrees"] == pytest.approx(4, abs=1)
    assert record["consistency_mm"] < 3 and record["dice"] > 0.9 and record["covered"] > 0.9
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.std() > 20


def test_another_patient_or_thing_is_refused(scans: phantom.Cohort) -> None:
    mr = read_volume(scans.test_mr[0])
    shape = (40, 40, 40)
    position = np.moveaxis(np.indices(shape), 0, -1) - 19.5
    ball = np.where(((position / (5, 19, 5)) ** 2).sum(-1) < 1, 40.0, -1000.0).astype(np.float32)
    affine = torch.diag(torch.tensor([5.0, 5.0, 5.0, 1.0], dtype=torch.float64))
    with pytest.raises(InputError, match=r"could not be registered .* leave this pair out"):
        register_onto(mr, MetaTensor(torch.from_numpy(ball)[None], affine=affine), ("MR", "CT"))


@pytest.mark.slow
def test_prepare_registers_pairs_and_leaves_out_what_fails(scans: phantom.Cohort, tmp_path: Path) -> None:
    away = tmp_path / "away.nii.gz"
    ct = moved(read_volume(scans.test_ct[0]))
    write_volume(away, ct.numpy()[0].astype(np.int16), grid_of(ct), description="moved")
    wrong = tmp_path / "wrong.nii.gz"
    rod = np.full((40, 40, 40), -1000, np.int16)
    rod[16:24, 2:38, 16:24] = 40
    write_volume(wrong, rod, Grid((40, 40, 40), np.diag([5.0, 5.0, 5.0, 1.0])), description="a rod")
    halves = (("good", away), ("bad", wrong))
    pairs = tuple((Case(name, (scans.test_mr[0],)), Case(name, (file,))) for name, file in halves)
    listed = Cohort((Case("m", (scans.train_mr[0],)),), (Case("c", (scans.train_ct[0],)),), pairs)
    plain = prepare(listed, tmp_path / "plain")
    assert set(plain.failed) == {"pairs_b/good", "pairs_b/bad"} and not plain.cases["pairs_a"]
    assert "preparation.register_pairs" in plain.failed["pairs_b/good"]
    result = prepare(listed, tmp_path / "moved", register_pairs=True)
    assert set(result.failed) == {"pairs_b/bad"} and "could not be registered" in result.failed["pairs_b/bad"]
    (a,), (b,) = result.cases["pairs_a"], result.cases["pairs_b"]
    assert a.id == b.id == "good" and a.grid.matches(b.grid)
    assert imread(b.folder / "registration.png").ndim == 3
    assert json.loads((b.folder / "case.json").read_text())["registration"]["consistency_mm"] < 3
