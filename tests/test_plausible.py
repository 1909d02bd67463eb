"""Geometry and Hounsfield units that no scan has are refused by one rule, in every format and wherever a CT is used."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series

from medcyclegan.errors import InputError
from medcyclegan.evaluation.case import read_hu
from medcyclegan.io.plausible import refuse_impossible_geometry
from medcyclegan.io.reader import as_volume, read_header, read_values, read_volume
from medcyclegan.qc.rules import Volume
from medcyclegan.qc.volume_rules import volume_findings
from medcyclegan.survey.volume import measure_file
from medcyclegan.transforms.pipeline import Preparation, prepare

VALUES = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)


def grid(spacing: float | list[float] = 1.0, origin: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] *= spacing
    affine[:3, 3] = origin
    return affine


class TestGeometry:
    @pytest.mark.parametrize(
        ("affine", "words"),
        [
            (grid(1e6), r"voxels of 1e\+06 x"),
            (grid([1, 1, 101]), r"1 x 1 x 101 mm; 0\.001 to 100 mm can be"),
            (grid([1, 0.9e-3, 1]), r"0\.0009"),
            (grid(1e-200), "voxels of 1e-200"),
            (grid(1e200), r"voxels of 1e\+200"),
            (grid([2, 1, 1e-200])[[2, 0, 1, 3]], r"voxels of 2 x 1 x 1e-200"),  # the first axis along y
            (grid(0.0015), r"longest side is 0\.009 mm"),
            (grid(1.0, origin=2e5), r"200 m from the origin"),
        ],
    )
    def test_what_cannot_be_is_refused(self, affine: np.ndarray, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            refuse_impossible_geometry((6, 5, 4), affine, "x.nii")
        assert str(caught.value).startswith("x.nii: ")

    @pytest.mark.parametrize("affine", [grid(0.025), grid([99, 0.5, 99]), grid(1.0, origin=-9e4)])
    def test_what_can_be_is_not(self, affine: np.ndarray) -> None:
        refuse_impossible_geometry((6, 5, 4), affine, "x.nii")

    def test_a_whole_body_of_ten_meters_is_none(self) -> None:
        with pytest.raises(InputError, match=r"longest side is 1\.001e"):
            refuse_impossible_geometry((6, 5, 1001), grid(10.0), "x.nii")

    def test_every_reader_and_every_header(self, tmp_path: Path) -> None:
        nib.save(nib.Nifti1Image(VALUES, grid(1000.0)), tmp_path / "v.nii.gz")
        image = sitk.GetImageFromArray(VALUES.T)
        image.SetSpacing((1000.0, 1.0, 1.0))
        for name in ("v.mha", "v.nrrd"):
            sitk.WriteImage(image, tmp_path / name)
        write_series(tmp_path / "v", VALUES, np.diag([1000.0, 1000.0, 3.0, 1.0]))
        for name in ("v.nii.gz", "v.mha", "v.nrrd", "v"):
            for read in (read_volume, read_values, read_header):
                with pytest.raises(InputError, match=rf"{name}: voxels of 1000"):
                    read(tmp_path / name)
        with pytest.raises(InputError, match="voxels of 1000"):
            as_volume(image)


class TestHounsfield:
    @pytest.mark.parametrize("value", [1e30, 64511.0, -40000.0])
    def test_wherever_a_volume_is_used_as_ct(self, value: float, tmp_path: Path) -> None:
        values = VALUES.astype(np.float32)
        values[2, 2, 2] = value
        file = tmp_path / "v.nii.gz"
        nib.save(nib.Nifti1Image(values, np.eye(4)), file)
        volume = read_volume(file)  # it may be an MR
        words = r"v\.nii\.gz: values from .* Hounsfield units of a CT lie within -32768 and 32767"
        with pytest.raises(InputError, match=words):
            prepare([volume], [Preparation(modality="CT", spacing=(1, 1, 1))])
        with pytest.raises(InputError, match=words):
            read_hu(file)
        findings = volume_findings(Volume("b", "v", "CT", measure_file(file)))
        assert [s.code for s in findings if s.code in ("impossible_hu", "modality")] == ["impossible_hu"]
        assert "impossible_hu" not in [s.code for s in volume_findings(Volume("a", "v", "MR", measure_file(file)))]

    def test_a_dicom_ct_says_it_by_itself(self, tmp_path: Path) -> None:
        def change(ds: object, k: int) -> None:
            ds.RescaleSlope = "1e27"  # type: ignore[attr-defined]

        write_series(tmp_path / "ct", VALUES, modality="CT", change=change)
        with pytest.raises(InputError, match=r"ct: values from .*Hounsfield units of a CT lie within -100000 and"):
            read_volume(tmp_path / "ct")

    def test_metal_is_a_ct(self, tmp_path: Path) -> None:
        values = VALUES.copy()
        values[2, 2, 2], values[0, 0, 0] = 32767, -32768
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "v.nii.gz")
        assert read_hu(tmp_path / "v.nii.gz")[0].max() == 32767
