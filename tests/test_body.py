"""The body mask: the patient in one piece, without table, noise and holes; or a refusal."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.transforms.body import BodyMaskd, OutsideBodyd, body_mask

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the real volumes (../shared/data) are absent")

SPACINGS = [(2.0, 2.0, 2.0), (1.0, 1.1, 5.0), (3.0, 1.5, 2.0)]
EXTENT = np.array([200.0, 240.0, 160.0])  # mm


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def pieces(mask: np.ndarray) -> int:
    return int(ndimage.label(mask)[1])


def millimeters(spacing: tuple[float, float, float], *, sparse: bool = False) -> list[np.ndarray]:
    """World coordinates of the voxel centers; the middle of the volume is 0."""
    shape = np.round(EXTENT / spacing).astype(int)
    along = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    return list(np.meshgrid(*along, indexing="ij", sparse=sparse))


@cache
def ellipsoid(
    spacing: tuple[float, float, float], radii: tuple[float, float, float], center: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> np.ndarray:
    xyz = millimeters(spacing, sparse=True)
    return np.asarray(sum(((x - c) / r) ** 2 for x, c, r in zip(xyz, center, radii, strict=True)) <= 1)


def head(spacing: tuple[float, float, float]) -> np.ndarray:
    return ellipsoid(spacing, (72, 92, 120))  # cut by the lower and upper edge of the volume, as heads are


def skull(spacing: tuple[float, float, float]) -> np.ndarray:
    return ellipsoid(spacing, (66, 86, 114)) & ~ellipsoid(spacing, (60, 80, 108))


@cache
def ct(spacing: tuple[float, float, float]) -> np.ndarray:
    """A head with a skull, an airway that opens to the front, a table of two thin plates, noise.

    The upper plate touches the head.
    """
    x, y, _ = millimeters(spacing)
    volume = np.full(x.shape, -1000.0)
    volume[head(spacing)] = 40
    volume[skull(spacing)] = 1200
    volume[ellipsoid(spacing, (8, 50, 8), (0, 55, -20))] = -1000
    for near, far in ((-95, -91), (-112, -108)):
        volume[(y > near) & (y < far) & (np.abs(x) < 90)] = -50
    return volume + np.random.default_rng(0).normal(0, 20, volume.shape)


def mr(spacing: tuple[float, float, float], noise: float = 0.0, bias: float = 0.0) -> np.ndarray:
    """A head with a dark skull and a gap of 8 mm in its scalp.

    `noise` is in parts of the brain's brightness; `bias` is the exponent of a gradient over the extent.
    """
    x, y, z = millimeters(spacing)
    volume = np.where(head(spacing), 100.0, 0.0)
    volume[(np.abs(x) < 4) & (y < 0)] = 0
    volume[ellipsoid(spacing, (60, 80, 108))] = 80
    volume[skull(spacing)] = 3
    volume[ellipsoid(spacing, (20, 20, 20), (0, 92, -20))] = 0  # a sinus that reaches the outside
    volume *= np.exp(bias * (z / EXTENT[2] + y / EXTENT[1]))
    generator = np.random.default_rng(0)
    sigma = noise * 80
    real = volume + generator.normal(0, sigma, volume.shape)
    return np.hypot(real, generator.normal(0, sigma, volume.shape))  # Rician


class TestCt:
    @pytest.mark.parametrize("spacing", SPACINGS)
    def test_the_head_without_the_table_and_with_its_airway(self, spacing: tuple[float, float, float]) -> None:
        mask = body_mask(ct(spacing), spacing, "CT")
        assert dice(mask, head(spacing)) > 0.98
        assert pieces(mask) == 1
        x, y, _ = millimeters(spacing)
        assert not mask[y < -102].any() and not mask[(y < -90) & (np.abs(x) > 40)].any()  # the table
        airway = ellipsoid(spacing, (8, 30, 8), (0, 45, -20))
        assert mask[airway].mean() > 0.95

    def test_thickness_is_measured_in_millimeters(self) -> None:
        # A wing of 12 mm in the direction of the thick slices is thicker than a table; one of 4 mm is not.
        volume = np.full((60, 60, 30), -1000.0)
        volume[20:40, 10:30, 5:25] = 0
        volume[20:40, 30:50, 8:11] = 0
        volume[20:40, 30:50, 18] = 0
        for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            spacing = tuple(np.array([2.0, 2.0, 4.0])[list(axes)])
            mask = body_mask(volume.transpose(axes), spacing, "CT").transpose(np.argsort(axes))
            assert mask[22:38, 42:46, 9].all()
            assert not mask[22:38, 42:46, 18].any()

    def test_metal_does_not_matter(self) -> None:
        spacing = SPACINGS[0]
        volume = ct(spacing).copy()
        clean = body_mask(volume, spacing, "CT")
        volume[ellipsoid(spacing, (4, 4, 4), (20, 20, 0))] = 30000
        np.testing.assert_array_equal(body_mask(volume, spacing, "CT"), clean)

    def test_a_volume_that_is_not_in_hu(self) -> None:
        with pytest.raises(InputError, match=r"nothing lies below -300 HU.*-1024"):
            body_mask(ct(SPACINGS[0]) + 1200, SPACINGS[0], "CT")
        with pytest.raises(InputError, match="nothing lies above -300 HU"):
            body_mask(np.full((20, 20, 20), -1000.0), (1.0, 1.0, 1.0), "CT")

    def test_a_crumb_is_no_body(self) -> None:
        volume = np.full((60, 60, 60), -1000.0)
        volume[30:38, 30:38, 30:36] = 0
        with pytest.raises(InputError, match="no body was found"):
            body_mask(volume, (2.0, 2.0, 2.0), "CT")


class TestMr:
    @pytest.mark.parametrize("spacing", SPACINGS)
    @pytest.mark.parametrize(("noise", "bias"), [(0.0, 0.0), (0.03, 0.0), (0.1, 0.0), (0.03, 1.0), (0.03, -1.0)])
    def test_the_head_with_its_dark_skull(self, spacing: tuple[float, float, float], noise: float, bias: float) -> None:
        mask = body_mask(mr(spacing, noise, bias), spacing, "MR")
        assert dice(mask, head(spacing)) > 0.96
        assert mask[skull(spacing)].mean() > 0.95
        assert pieces(mask) == 1

    def test_a_skull_stripped_brain(self) -> None:
        spacing = SPACINGS[1]
        brain = ellipsoid(spacing, (60, 80, 70))
        volume = np.where(brain, 70 + 10 * np.sin(millimeters(spacing)[0] / 5), 0)
        assert dice(body_mask(volume, spacing, "MR"), brain) > 0.97

    def test_neither_units_nor_one_hot_voxel_matter(self) -> None:
        spacing = SPACINGS[0]
        volume = mr(spacing, 0.03)
        mask = body_mask(volume, spacing, "MR")
        np.testing.assert_array_equal(body_mask(volume * 1e-4, spacing, "MR"), mask)
        zero_mean = (volume - volume.mean()) / volume.std()
        assert dice(body_mask(zero_mean, spacing, "MR"), mask) > 0.999
        volume[50, 60, 40] = 1e6
        assert dice(body_mask(volume, spacing, "MR"), mask) > 0.999

    @pytest.mark.parametrize("shape", [(40, 40, 40), (80, 60, 5)])
    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 3.0, 3.0)])
    def test_noise_is_refused(self, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
        noise = np.random.default_rng(0).rayleigh(10, shape)
        with pytest.raises(InputError, match="no body was found"):
            body_mask(noise, spacing, "MR")


class TestLaws:
    @pytest.mark.parametrize("modality", ["MR", "CT"])
    def test_the_mask_moves_with_the_volume(self, modality: str) -> None:
        spacing = (2.0, 2.0, 4.0)
        volume = ct(spacing) if modality == "CT" else mr(spacing, 0.03)
        mask = body_mask(volume, spacing, modality)
        flipped = body_mask(volume[::-1].transpose(2, 0, 1), (4.0, 2.0, 2.0), modality)
        assert dice(flipped, mask[::-1].transpose(2, 0, 1)) > 0.999

    def test_a_finer_copy_has_the_same_body(self) -> None:
        coarse = body_mask(ct((2.0, 2.0, 2.0)), (2.0, 2.0, 2.0), "CT")
        fine = body_mask(ct((2.0, 2.0, 2.0)).repeat(2, 0).repeat(2, 1), (1.0, 1.0, 2.0), "CT")
        assert fine.dtype == np.bool_
        assert dice(fine, coarse.repeat(2, 0).repeat(2, 1)) > 0.995

    def test_arguments_are_checked(self) -> None:
        with pytest.raises(ValueError, match="'MR' or 'CT'"):
            body_mask(np.zeros((4, 4, 4)), (1, 1, 1), "PET")
        with pytest.raises(ValueError, match="three spacings"):
            body_mask(np.zeros((4, 4, 4)), (1, 1), "CT")


class TestDictionaryTransforms:
    def test_body_and_outside(self) -> None:
        spacing = SPACINGS[0]
        volume = ct(spacing).astype(np.float32)
        affine = torch.diag(torch.tensor([*spacing, 1.0])).double()
        data = BodyMaskd("image", "body", modality="CT")(
            {"image": MetaTensor(torch.from_numpy(volume)[None], affine=affine)}
        )
        mask = body_mask(volume, spacing, "CT")
        np.testing.assert_array_equal(volume, ct(spacing).astype(np.float32), "the input is left alone")
        np.testing.assert_array_equal(data["body"][0].numpy() > 0, mask)
        assert grid_of(data["body"]).matches(grid_of(data["image"]))
        outside = OutsideBodyd("image", "body", -1024.0)(data)["image"][0].numpy()
        np.testing.assert_array_equal(outside, np.where(mask, volume, -1024))


@needs_data
class TestRealHeads:
    @staticmethod
    @cache
    def mask(name: str) -> np.ndarray:
        volume = read_volume(DATA / name)
        mask = body_mask(volume[0].numpy(), grid_of(volume).spacing.tolist(), "CT" if "/ct_" in name else "MR")
        assert pieces(mask) == 1
        return mask

    def test_ct_agrees_with_the_published_recipe(self) -> None:
        volume = read_volume(DATA / "heads" / "ct_template_hu.nii.gz")[0].numpy()
        recipe = ndimage.binary_fill_holes(ndimage.binary_opening(volume > -300))
        labels, _ = ndimage.label(recipe)
        recipe = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        assert recipe.sum() == pytest.approx(513_235, rel=5e-3)
        assert dice(self.mask("heads/ct_template_hu.nii.gz"), recipe) > 0.98

    @pytest.mark.parametrize("name", ["mr_avg152_t1", "mr_avg152_t2", "mr_single_subject_t1"])
    def test_mr_agrees_with_the_ct_on_the_same_grid(self, name: str) -> None:
        # Three other heads than that of the CT, aligned with it: alike, not the same.
        assert dice(self.mask(f"heads/{name}.nii.gz"), self.mask("heads/ct_template_hu.nii.gz")) > 0.95

    # Parts of the volume, read off masks that were looked at slice by slice.
    @pytest.mark.parametrize(
        ("name", "part"),
        [("mr_seg3d_t1.nii.gz", 0.598), ("mr_stroke_patient_t2.nii.gz", 0.670), ("mr_tumour_t1gd.nrrd", 0.596)],
    )
    def test_mr_of_patients(self, name: str, part: float) -> None:
        assert self.mask(f"heads/{name}").mean() == pytest.approx(part, abs=0.02)

    @pytest.mark.parametrize("name", ["nib_anatomical.nii", "d2n_anatomical_001_ground_truth.nii.gz"])
    def test_a_piece_of_a_brain_and_noise_are_refused(self, name: str) -> None:
        with pytest.raises(InputError, match="no body was found"):
            self.mask(f"odd/{name}")
