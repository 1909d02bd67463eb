"""NIfTI out: results lie where every program shows the source."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.transforms import Flip, LoadImage
from scans import SHAPE, VALUES, nifti

from medcyclegan.evaluation.case import _write_map
from medcyclegan.io.grid import SHEAR_COSINE, Grid
from medcyclegan.io.nifti import kept_fields
from medcyclegan.io.reader import as_volume, grid_of, read_volume
from medcyclegan.io.writer import to_int16, write_volume


def turned(degrees: float = 15.0) -> np.ndarray:
    """An oblique, left-handed, anisotropic affine."""
    t = np.radians(degrees)
    rotation = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(t / 2), -np.sin(t / 2)], [0, np.sin(t / 2), np.cos(t / 2)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ tip @ np.diag([-1.5, 1.25, 3.0])
    affine[:3, 3] = (20, -30, 10)
    return affine


def rounded(affine: np.ndarray) -> np.ndarray:
    result = affine.copy()
    result[:3, :3] = np.round(result[:3, :3], 3)
    return result


def sources(folder: Path) -> list[Path]:
    """Headers whose two forms are each of their own."""
    result = [folder / f"{name}.nii" for name in ("rounded", "apart", "sheared", "micron", "meter", "q", "s", "none")]
    for path in result:
        nifti(path, {"q": "q", "s": "s", "none": ""}.get(path.stem, "sq"), turned())
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
class TestResults:
    GEOMETRY = ("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_z")

    def test_they_lie_where_each_program_shows_the_source(self, tmp_path: Path) -> None:
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
        source = read_volume(tmp_path / "scan.nii")
        write_volume(tmp_path / "sct.nii", VALUES, grid_of(source), nifti=kept_fields(source.meta))
        header = nib.load(tmp_path / "sct.nii").header
        np.testing.assert_allclose(header.get_sform(), turned(30), atol=1e-5)
        np.testing.assert_allclose(header.get_qform(), turned(), atol=1e-4)
        assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 2)

    def test_from_monai_and_after_a_move(self, tmp_path: Path) -> None:
        """MONAI's metadata hold the same fields; where a transform moved the voxels, only the codes are kept."""
        sources(tmp_path)
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
