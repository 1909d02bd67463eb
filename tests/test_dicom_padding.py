"""Padding of DICOM images was not measured: air in CT, never metal, whatever sign and bits it is written with."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import RAS, edit, write_enhanced, write_series
from pydicom.dataset import Dataset

from medcyclegan.evaluation.case import grade
from medcyclegan.evaluation.pairing import CaseFiles
from medcyclegan.evaluation.scoring import Scoring
from medcyclegan.io.dicom.padding import fill_padding
from medcyclegan.io.reader import read_volume

SHAPE = (20, 18, 4)
X, Y = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
OUTSIDE = np.broadcast_to((X**2 + Y**2 > 1)[..., None], SHAPE)
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE)


@pytest.fixture(autouse=True)
def no_unexpected_warnings() -> None:
    warnings.simplefilter("error", UserWarning)


def padded(folder: Path, stored: np.ndarray, modality: str = "CT", bits: int = 16, **tags: tuple[str, int]) -> Path:
    def change(ds: Dataset, k: int) -> None:
        ds.BitsStored, ds.HighBit = bits, bits - 1
        for keyword, (kind, value) in tags.items():
            ds.add_new({"value": 0x00280120, "limit": 0x00280121}[keyword], kind, value)

    return write_series(folder, stored, modality=modality, change=change)


class TestCT:
    @pytest.mark.parametrize(
        ("pixels", "pad", "bits", "tags"),
        [
            ("u2", 65535, 16, {"value": ("US", 65535)}),
            ("u2", 65535, 16, {"value": ("SS", -1)}),
            ("u2", 65535, 12, {"value": ("US", 65535)}),  # in bits that are not stored
            ("u2", 4095, 12, {"value": ("US", 4095)}),
            ("u2", 65200, 16, {"value": ("US", 65000), "limit": ("US", 65500)}),
            ("u2", 65200, 16, {"value": ("US", 65500), "limit": ("US", 65000)}),
            ("i2", 32767, 16, {"value": ("SS", 32767)}),
            ("i2", 31000, 16, {"value": ("SS", 30000), "limit": ("US", 32767)}),
        ],
    )
    def test_above_air_it_becomes_air(
        self, pixels: str, pad: int, bits: int, tags: dict[str, tuple[str, int]], tmp_path: Path
    ) -> None:
        stored = np.where(OUTSIDE, pad, HU + 1024).astype(pixels)
        folder = padded(tmp_path / "ct", stored, bits=bits, **tags)
        with pytest.warns(UserWarning, match=rf"ct: {OUTSIDE.sum()} pixels are padding .* became air \(-1024 HU\)"):
            volume = read_volume(folder)
        np.testing.assert_array_equal(volume.numpy()[0], np.where(OUTSIDE, -1024, HU))

    @pytest.mark.parametrize("tag", [("SS", -2000), ("US", 63536)])
    def test_below_air_it_stays_as_it_is_stored(self, tag: tuple[str, int], tmp_path: Path) -> None:
        stored = np.where(OUTSIDE, -2000, HU + 1024).astype(np.int16)
        volume = read_volume(padded(tmp_path / "ct", stored, value=tag))
        np.testing.assert_array_equal(volume.numpy()[0], np.where(OUTSIDE, -3024, HU))

    def test_metal_of_the_same_value_stays(self, tmp_path: Path) -> None:
        stored = np.where(OUTSIDE, 4095, HU + 1024).astype(np.uint16)
        stored[9:11, 9, 2] = 4095
        folder = padded(tmp_path / "ct", stored, bits=12, value=("US", 4095))
        with (
            pytest.warns(UserWarning, match="became air"),
            pytest.warns(UserWarning, match="2 pixels within the images have the value that the header calls padding"),
        ):
            array = read_volume(folder).numpy()[0]
        assert (array[9:11, 9, 2] == 3071).all() and (array == 3071).sum() == 2
        assert (array[OUTSIDE] == -1024).all()

    def test_a_limit_without_a_value_says_nothing(self, tmp_path: Path) -> None:
        folder = padded(tmp_path / "ct", (HU + 1024).astype(np.uint16), limit=("US", 3000))
        np.testing.assert_array_equal(read_volume(folder).numpy()[0], HU)

    def test_a_perfect_synthetic_ct_is_graded_perfect(self, tmp_path: Path) -> None:
        shape = (36, 36, 12)
        axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
        hu = np.where((axes[0] / 0.8) ** 2 + (axes[1] / 0.7) ** 2 < 1, 40, -1000)
        hu = hu + np.random.default_rng(0).integers(-20, 20, shape)
        outside = axes[0] ** 2 + axes[1] ** 2 > 1
        lps = np.diag([5.0, 5.0, 6.0, 1.0])
        stored = np.where(outside, 65535, hu + 1024).astype(np.uint16)
        write_series(
            tmp_path / "ct", stored, lps, modality="CT", change=lambda ds, k: ds.add_new(0x00280120, "US", 65535)
        )
        nib.save(
            nib.Nifti1Image(np.where(outside, -1024, hu).astype(np.int16), RAS @ lps), tmp_path / "prediction.nii.gz"
        )
        files = CaseFiles(tmp_path / "prediction.nii.gz", tmp_path / "ct")
        case = grade("x", files, Scoring("synthrad2023"))
        assert case.scores["mae"].value == 0
        assert not [note for note in case.notes[: case.doubtful] if "became air" not in note]


class TestMR:
    @pytest.mark.parametrize(
        ("pad", "kind", "becomes"),
        [(65535, "US", 7), (0, "US", 0), (-32768, "SS", 0)],  # the lowest value that was measured, and never above 0
    )
    def test_it_becomes_the_lowest_value_or_0(self, pad: int, kind: str, becomes: int, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(7, 900, SHAPE)
        values[10, 9, 0] = 7
        pixels = np.where(OUTSIDE, pad, values).astype(np.int16 if kind == "SS" else np.uint16)
        folder = padded(tmp_path / "mr", pixels, modality="MR", value=(kind, pad))
        words = "became the lowest value that was measured, or 0"
        with pytest.warns(UserWarning, match=words) if pad else nullcontext():
            array = read_volume(folder).numpy()[0]
        np.testing.assert_array_equal(array, np.where(OUTSIDE, becomes, values))

    def test_enhanced_multiframe(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(1, 900, SHAPE)
        file = write_enhanced(tmp_path / "mr.dcm", np.where(OUTSIDE, 65535, values).astype(np.uint16))
        edit(tmp_path, lambda ds, k: ds.add_new(0x00280120, "US", 65535))
        expected = values * np.array([1, 2, 3, 4]) + 5
        with pytest.warns(UserWarning, match="became the lowest"):
            array = read_volume(file).numpy()[0]
        np.testing.assert_array_equal(array[~OUTSIDE], expected[~OUTSIDE])
        assert (array[OUTSIDE] == expected[~OUTSIDE].min()).all()


class TestFilling:
    """Images of 4 x 5 pixels, padding at one edge or in the middle."""

    @pytest.mark.parametrize("place", [(0, 2), (3, 2), (1, 0), (2, 4)])
    def test_each_edge_is_one(self, place: tuple[int, int]) -> None:
        array = np.full((2, 4, 5), 100, np.float32)
        array[0, 1:3, 2] = array[0][place] = 3000
        is_padding = array == 3000
        count = 1 if place[1] in (0, 4) else 3  # at the upper and lower edge it is connected with the middle
        expected = np.where(is_padding, -1024, array)
        if count == 1:
            expected[0, 1:3, 2] = 3000
        notes = fill_padding(array, is_padding, "CT")
        np.testing.assert_array_equal(array, expected)
        assert notes[0].startswith(f"{count} pixels are padding") and len(notes) == (2 if count == 1 else 1)
        assert count == 3 or notes[1].startswith("2 pixels within the images")

    def test_in_mr_it_becomes_the_lowest_value_and_never_less_than_0(self) -> None:
        for lowest, low in ((20, 0), (-30, -30)):
            array = np.array([[[-5000, 400, 900], [lowest, 500, 900], [600, 700, 800]]], np.float32)
            notes = fill_padding(array, (array == -5000) | (array == 900), "MR")
            high = lowest
            assert array.tolist() == [[[low, 400, high], [lowest, 500, high], [600, 700, 800]]]
            assert notes[0].startswith("3 pixels are padding") and len(notes) == 1
        array = np.full((1, 2, 2), 7, np.float32)
        assert "every pixel has the value" in fill_padding(array, np.ones(array.shape, bool), "MR")[0]
        assert fill_padding(array, np.zeros(array.shape, bool), "CT") == [] and (array == 7).all()
