"""NIfTI: read as the standard says or refused by name, and results that lie where every program shows the source."""

from __future__ import annotations

import gzip
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.transforms import Flip, LoadImage

from medcyclegan.errors import InputError
from medcyclegan.evaluation.case import _write_map
from medcyclegan.io.grid import SHEAR_COSINE, Grid
from medcyclegan.io.headers import read_header
from medcyclegan.io.nifti import kept_fields
from medcyclegan.io.reader import as_volume, grid_of, read_volume
from medcyclegan.io.writer import to_int16, write_volume

SHAPE = (6, 5, 4)
VALUES = np.random.default_rng(5).integers(-1000, 2000, SHAPE).astype(np.int16)
# Where fields lie in NIfTI-1: name -> format and byte.
FIELDS = {
    "dim": ("h", 40),
    "datatype": ("h", 70),
    "bitpix": ("h", 72),
    "qfac": ("f", 76),
    "pixdim": ("f", 80),
    "vox_offset": ("f", 108),
    "scl_slope": ("f", 112),
    "scl_inter": ("f", 116),
    "xyzt_units": ("B", 123),
    "qform_code": ("h", 252),
    "sform_code": ("h", 254),
    "quatern_b": ("f", 256),
    "qoffset_x": ("f", 268),
    "srow_x": ("f", 280),
    "magic": ("4s", 344),
}


def turned(degrees: float = 15.0) -> np.ndarray:
    """An oblique, left-handed, anisotropic affine."""
    t = np.radians(degrees)
    rotation = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(t / 2), -np.sin(t / 2)], [0, np.sin(t / 2), np.cos(t / 2)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ tip @ np.diag([-1.5, 1.25, 3.0])
    affine[:3, 3] = (20, -30, 10)
    return affine


def store(path: Path, forms: str = "sq", affine: np.ndarray | None = None, **changes: Any) -> Path:
    """A NIfTI-1 file with the forms named ("s", "q", "sq", ""), then fields changed byte by byte."""
    affine = turned() if affine is None else affine
    image = nib.Nifti1Image(VALUES, affine)
    image.set_qform(affine if "q" in forms else None, "q" in forms)
    image.set_sform(affine if "s" in forms else None, "s" in forms)
    image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    image.header.set_xyzt_units("mm", "sec")
    content = bytearray(image.to_bytes())
    for name, value in changes.items():
        code, place = FIELDS[name]
        struct.pack_into(f"<{code}", content, place, value)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.fixture(autouse=True)
def no_unexpected_warnings(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("error")


class TestRefused:
    @pytest.mark.parametrize(
        ("forms", "change", "reason"),
        [
            ("sq", {"dim": 0}, "dimensions"),
            ("sq", {"dim": 8}, "dimensions"),
            ("sq", {"dim": -3}, "dimensions"),
            ("sq", {"datatype": 8}, "datatype 8 \\(int32\\) has 32 bits per voxel, and bitpix is 16"),
            ("sq", {"datatype": 1}, "values of type 1"),
            ("sq", {"datatype": 1536, "bitpix": 128}, "values of type 1536"),
            ("sq", {"datatype": 128, "bitpix": 24}, "color"),
            ("sq", {"datatype": 32, "bitpix": 64}, "complex"),
            ("sq", {"vox_offset": 0}, "begin at byte 0"),
            ("sq", {"vox_offset": 348}, "begin at byte 348"),
            ("sq", {"vox_offset": 352.5}, r"begin at byte 352\.5"),
            ("sq", {"vox_offset": float("nan")}, "begin at byte nan"),
            ("sq", {"vox_offset": 1e9}, "cut short: 0 of 240 bytes"),
            ("sq", {"scl_slope": float("nan")}, "slope nan"),
            ("sq", {"scl_slope": float("inf")}, "slope inf"),
            ("sq", {"scl_slope": 2, "scl_inter": float("nan")}, "intercept nan"),
            ("sq", {"xyzt_units": 5}, "unit 5"),
            ("sq", {"sform_code": 7}, "sform_code 7"),
            ("sq", {"sform_code": -1}, "sform_code -1"),
            ("sq", {"qform_code": 1000}, "qform_code 1000"),
            ("q", {"qfac": 1000}, "qfac"),
            ("q", {"qfac": float("nan")}, "qfac"),
            ("q", {"pixdim": 0}, "voxel size of 0"),
            ("q", {"pixdim": float("inf")}, "voxel size of inf"),
            ("q", {"quatern_b": 2}, "no rotation"),
            ("q", {"quatern_b": float("nan")}, "no rotation"),
            ("q", {"qoffset_x": float("inf")}, "no rotation"),
            ("", {"pixdim": 0}, "voxel size of 0"),
            ("s", {"srow_x": float("nan")}, "not finite"),
            ("sq", {"magic": b"ni1\0"}, r"NIfTI pair, whose voxels lie in an \.img file"),
            ("sq", {"magic": b"\0\0\0\0"}, "mark"),
        ],
    )
    def test_what_the_standard_does_not_know(self, forms: str, change: dict, reason: str, tmp_path: Path) -> None:
        path = store(tmp_path / "scan.nii", forms, **change)
        for reads in (read_volume, read_header):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(InputError, match=reason):
                    reads(path)

    @pytest.mark.parametrize("size", [0, 3, 100, 347, 351, 400])
    @pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
    def test_cut_anywhere(self, name: str, size: int, tmp_path: Path) -> None:
        content = store(tmp_path / "whole.nii").read_bytes()[:size]
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        with pytest.raises(InputError, match=r"cut short|is empty|not NIfTI"):
            read_volume(path)


class TestRead:
    @pytest.mark.parametrize(
        ("forms", "change"),
        [
            ("sq", {"xyzt_units": 66}),  # an unknown unit of time: nothing here lasts
            ("sq", {"xyzt_units": 0}),
            ("q", {"qfac": 0}),  # nifti1.h: taken for 1
            ("sq", {"scl_slope": 0}),
        ],
    )
    def test_what_the_standard_has_an_answer_for(self, forms: str, change: dict, tmp_path: Path) -> None:
        affine = turned()
        if "qfac" in change:
            affine[:3, 2] *= -1  # right-handed
        path = store(tmp_path / "scan.nii", forms, affine, **change)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.numpy()[0], VALUES)
        np.testing.assert_allclose(volume.affine.numpy(), affine, atol=1e-4)  # a quaternion of float32
        np.testing.assert_array_equal(read_header(path).grid.affine, volume.affine.numpy())

    def test_slope_0_leaves_the_intercept_out(self, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match="slope is 0, which means unscaled: the intercept of -1024 is not added"):
            volume = read_volume(store(tmp_path / "scan.nii", scl_slope=0, scl_inter=-1024))
        np.testing.assert_array_equal(volume.numpy()[0], VALUES)

    def test_a_rounded_quaternion(self, tmp_path: Path) -> None:
        """Half a turn has a = 0; its b, c and d rounded up give a length above 1, which other programs read."""
        affine = np.diag([-1.5, -1.25, 3.0, 1.0])
        path = store(tmp_path / "scan.nii", "q", affine)
        content = bytearray(path.read_bytes())
        for digit in (1 + 1e-7, 1 + 1e-4):
            struct.pack_into("<3f", content, 256, 0, 0, digit)
            path.write_bytes(content)
            np.testing.assert_allclose(read_volume(path).affine.numpy(), affine, atol=1e-5)

    def test_a_negative_voxel_size_is_said(self, tmp_path: Path) -> None:
        path = store(tmp_path / "scan.nii", "q", pixdim=-1.5)
        with pytest.warns(UserWarning, match="negative voxel size.*check left and right"):
            volume = read_volume(path)
        np.testing.assert_allclose(volume.affine.numpy(), turned(), atol=1e-4)

    @pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
    def test_compressed_other_than_the_name_says(self, name: str, tmp_path: Path) -> None:
        path = store(tmp_path / name)
        other = path.rename(tmp_path / ("scan.nii.gz" if name == "scan.nii" else "scan.nii"))
        with pytest.warns(UserWarning, match="compressed, other than its name says"):
            volume = read_volume(other)
        np.testing.assert_array_equal(volume.numpy()[0], VALUES)

    @pytest.mark.parametrize(("unit", "factor"), [(1, 1e-3), (3, 1e3)])
    @pytest.mark.parametrize("forms", ["s", "q", "sq"])
    def test_lengths_in_other_units(self, forms: str, unit: int, factor: float, tmp_path: Path) -> None:
        affine = turned()
        affine[:3] *= factor
        path = store(tmp_path / "scan.nii", forms, affine, xyzt_units=unit)
        volume = read_volume(path)
        np.testing.assert_allclose(volume.affine.numpy(), turned(), atol=1e-4)
        np.testing.assert_allclose(sitk.ReadImage(str(path)).GetSpacing(), [1.5, 1.25, 3], atol=1e-5)
        np.testing.assert_array_equal(as_volume(nib.load(path)).affine.numpy(), volume.affine.numpy())

    @pytest.mark.parametrize("unit", [1, 3])
    def test_a_unit_that_cannot_be(self, unit: int, tmp_path: Path) -> None:
        path = store(tmp_path / "scan.nii", xyzt_units=unit)
        with pytest.warns(UserWarning, match=r"mm long; its lengths are taken for mm"):
            volume = read_volume(path)
        np.testing.assert_allclose(volume.affine.numpy(), turned(), atol=1e-5)

    def test_a_nibabel_image_with_a_slope(self, tmp_path: Path) -> None:
        path = store(tmp_path / "scan.nii", scl_slope=0.5, scl_inter=-24)
        volume = as_volume(nib.load(path))
        np.testing.assert_array_equal(volume.numpy()[0], VALUES * 0.5 - 24)
        np.testing.assert_array_equal(read_volume(path).numpy(), volume.numpy())


def rounded(affine: np.ndarray) -> np.ndarray:
    result = affine.copy()
    result[:3, :3] = np.round(result[:3, :3], 3)
    return result


def sources(folder: Path) -> list[Path]:
    """Headers whose two forms are each of their own."""
    result = [folder / f"{name}.nii" for name in ("rounded", "apart", "sheared", "micron", "meter", "q", "s", "none")]
    for path in result:
        store(path, {"q": "q", "s": "s", "none": ""}.get(path.stem, "sq"))
    forms = {"rounded": (rounded(turned()), turned(), 1, 1), "apart": (turned(30), turned(), 4, 2)}
    tilted = turned()
    tilted[:3, 2] += [0.5, 0.3, 0]
    forms["sheared"] = (tilted, turned(), 2, 1)
    for unit, factor in (("micron", 1e3), ("meter", 1e-3)):
        forms[unit] = (np.diag([factor] * 3 + [1]) @ turned(25), np.diag([factor] * 3 + [1]) @ turned(), 2, 1)
    for name, (sform, qform, sform_code, qform_code) in forms.items():
        image = nib.Nifti1Image(VALUES, sform)
        image.set_qform(qform, qform_code)
        image.set_sform(sform, sform_code)
        image.header.set_xyzt_units(name if name in ("micron", "meter") else "mm")
        nib.save(image, folder / f"{name}.nii")
    return result


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_frame_is_a_volume(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(6, 5, 4, 1), np.eye(4)), tmp_path / "frame.nii")
    assert read_volume(tmp_path / "frame.nii").shape == (1, 6, 5, 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_forms_that_part_toward_the_end_of_the_longest_axis(axis: int, tmp_path: Path) -> None:
    """0.3 degrees between sform and qform: 0.01 mm at 3 voxels, 1.6 mm at 300."""
    turn = np.eye(4)
    turned = (0, 1) if axis == 0 else (1, 2) if axis == 1 else (2, 0)
    small = np.radians(0.3)
    turn[np.ix_(turned, turned)] = [[np.cos(small), -np.sin(small)], [np.sin(small), np.cos(small)]]
    for length in (3, 300):
        shape = [3, 3, 3]
        shape[axis] = length
        image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), np.eye(4))
        image.set_sform(np.eye(4), 1)
        image.set_qform(turn, 1)
        nib.save(image, tmp_path / "scan.nii")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            read_volume(tmp_path / "scan.nii")
        assert any("sform and qform disagree by up to 1.6 mm" in str(w.message) for w in told) is (length == 300)


class TestResults:
    GEOMETRY = ("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_z")

    def test_they_lie_where_each_program_shows_the_source(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for path in sources(tmp_path):
                source = read_volume(path)
                target = tmp_path / "sct.nii.gz"
                write_volume(target, to_int16(source.numpy()[0]), grid_of(source), nifti=kept_fields(source.meta))
                ours = read_volume(target)
                np.testing.assert_array_equal(ours.affine.numpy(), source.affine.numpy())
                before, after = nib.load(path), nib.load(target)
                np.testing.assert_array_equal(after.affine, before.affine)
                for key in (*self.GEOMETRY, "xyzt_units"):
                    np.testing.assert_array_equal(
                        after.header[key] & 7 if "xyzt" in key else after.header[key],
                        before.header[key] & 7 if "xyzt" in key else before.header[key],
                        err_msg=f"{path.stem} {key}",
                    )
                np.testing.assert_array_equal(after.header["pixdim"][:4], before.header["pixdim"][:4])
                given, written = sitk.ReadImage(str(path)), sitk.ReadImage(str(target))
                for index in ((0, 0, 0), (5, 1, 3)):
                    place = given.TransformIndexToPhysicalPoint(index)
                    assert place == written.TransformIndexToPhysicalPoint(index), path.stem

    def test_a_nifti_2_source(self, tmp_path: Path) -> None:
        image = nib.Nifti2Image(VALUES, turned(30))
        image.set_qform(turned(), 2)
        image.set_sform(turned(30), 4)
        nib.save(image, tmp_path / "scan.nii")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = read_volume(tmp_path / "scan.nii")
            write_volume(tmp_path / "sct.nii", VALUES, grid_of(source), nifti=kept_fields(source.meta))
        header = nib.load(tmp_path / "sct.nii").header
        np.testing.assert_allclose(header.get_sform(), turned(30), atol=1e-5)
        np.testing.assert_allclose(header.get_qform(), turned(), atol=1e-4)
        assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 2)

    def test_from_monai_and_after_a_move(self, tmp_path: Path) -> None:
        """MONAI's metadata hold the same fields; where a transform moved the voxels, only the codes are kept."""
        sources(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = LoadImage(ensure_channel_first=True)(tmp_path / "apart.nii")
            for given, qform in ((loaded, turned()), (Flip(0)(loaded), None)):
                volume = as_volume(given)
                write_volume(tmp_path / "sct.nii", VALUES, grid_of(volume), nifti=kept_fields(volume.meta))
                header = nib.load(tmp_path / "sct.nii").header
                expected = volume.affine.numpy() if qform is None else qform
                np.testing.assert_allclose(header.get_qform(), expected, atol=1e-4)
                np.testing.assert_allclose(header.get_sform(), given.affine.numpy(), atol=1e-4)
                assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 2)

    def test_maps_of_range_errors(self, tmp_path: Path) -> None:
        sources(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grid = grid_of(read_volume(tmp_path / "apart.nii"))
        found: Any = SimpleNamespace(targets=np.array([[1, 2, 3]]), map={"wepl": np.array([4.0])})
        _write_map(tmp_path / "map.nii.gz", found, grid, tmp_path / "apart.nii")
        written = nib.load(tmp_path / "map.nii.gz")
        np.testing.assert_allclose(written.header.get_qform(), turned(), atol=1e-4)
        assert written.dataobj[1, 2, 3] == 4 and np.isnan(written.dataobj[0, 0, 0])

    @pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
    def test_rounded_axes_of_other_formats_open_in_itk(self, suffix: str, tmp_path: Path) -> None:
        grid = Grid(SHAPE, rounded(turned()))
        assert 1e-5 < grid.shear < SHEAR_COSINE
        write_volume(tmp_path / f"scan{suffix}", VALUES, grid)
        source = read_volume(tmp_path / f"scan{suffix}")
        write_volume(tmp_path / "sct.nii.gz", VALUES, grid_of(source), nifti=kept_fields(source.meta))
        given, written = (sitk.ReadImage(str(tmp_path / name)) for name in (f"scan{suffix}", "sct.nii.gz"))
        for index in ((0, 0, 0), (5, 4, 3)):
            places = [np.array(image.TransformIndexToPhysicalPoint(index)) for image in (given, written)]
            assert np.linalg.norm(places[0] - places[1]) < 0.01
        assert torch.equal(read_volume(tmp_path / "sct.nii.gz").as_tensor(), source.as_tensor())
