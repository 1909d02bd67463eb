"""Writing: what was written is what is read, where it was, and a file is whole or absent."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from axis_orders import ORDERS, affine_of
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import VOLUME_SUFFIXES, SimpleITKReader, as_volume, grid_of, read_volume
from medcyclegan.io.writer import SimpleITKWriter, to_int16, write_volume

SHAPE = (5, 4, 3)


def hounsfield(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3072, shape).astype(np.int16)


def sheared() -> Grid:
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    affine[1, 2] = 1.0
    return Grid(SHAPE, affine)


class TestIdentity:
    @pytest.mark.parametrize("degrees", [0.0, 17.0])
    @pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
    def test_write_then_read_for_all_axis_orders(self, suffix: str, degrees: float, tmp_path: Path) -> None:
        for order in ORDERS:
            grid = Grid(SHAPE, affine_of(order, degrees))
            path = tmp_path / f"scan{suffix}"
            write_volume(path, hounsfield(), grid)
            volume = read_volume(path)
            np.testing.assert_array_equal(volume.numpy()[0], hounsfield())
            assert grid_of(volume).matches(grid, 1e-4)
            # Once through float32 headers, nothing changes any more.
            write_volume(path, volume.numpy()[0], grid_of(volume))
            again = read_volume(path)
            np.testing.assert_array_equal(again.numpy(), volume.numpy())
            assert grid_of(again).matches(grid_of(volume), 1e-12)

    @pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
    @pytest.mark.parametrize("byte_order", ["<", ">"])
    @pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
    def test_from_other_niftis(self, image_class: type, byte_order: str, suffix: str, tmp_path: Path) -> None:
        header = image_class.header_class(endianness=byte_order)
        header.set_data_dtype(np.dtype(np.int16).newbyteorder(byte_order))
        path = tmp_path / ("source.nii" if byte_order == "<" else "source.nii.gz")
        nib.save(image_class(hounsfield(), affine_of(ORDERS[7], 5.0), header), path)
        source = read_volume(path)
        assert grid_of(source).matches(Grid(SHAPE, affine_of(ORDERS[7], 5.0)), 1e-4)
        write_volume(tmp_path / f"copy{suffix}", to_int16(source.numpy()[0]), grid_of(source))
        copy = read_volume(tmp_path / f"copy{suffix}")
        np.testing.assert_array_equal(copy.numpy()[0], hounsfield())
        assert grid_of(copy).matches(grid_of(source), 1e-4)

    @pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
    def test_shear_is_kept(self, suffix: str, tmp_path: Path) -> None:
        write_volume(tmp_path / f"scan{suffix}", hounsfield(), sheared())
        with pytest.warns(UserWarning, match="sheared"):
            volume = read_volume(tmp_path / f"scan{suffix}")
        assert grid_of(volume).matches(sheared(), 1e-5)

    @pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
    @pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.bool_])
    def test_itk_finds_the_array_with_its_type_in_its_place(self, dtype: type, suffix: str, tmp_path: Path) -> None:
        array = (hounsfield() / 16).astype(dtype)
        affine = affine_of(ORDERS[29], 11.0)
        write_volume(tmp_path / f"scan{suffix}", array, Grid(SHAPE, affine))
        image = sitk.ReadImage(str(tmp_path / f"scan{suffix}"))
        found = sitk.GetArrayFromImage(image).T
        assert found.dtype == (np.uint8 if dtype is np.bool_ else dtype)
        np.testing.assert_array_equal(found, array)
        world = (affine @ [4, 1, 2, 1])[:3]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((4, 1, 2)), world * [-1, -1, 1], atol=1e-4)


class TestHeader:
    def test_nifti(self, tmp_path: Path) -> None:
        affine = affine_of(ORDERS[11], 8.0)
        write_volume(tmp_path / "scan.nii.gz", hounsfield(), Grid(SHAPE, affine), description="é" * 100)
        with gzip.open(tmp_path / "scan.nii.gz") as stream:
            header = nib.Nifti1Header.from_fileobj(stream)
        assert header.get_xyzt_units()[0] == "mm"
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
        np.testing.assert_allclose(header.get_sform(), affine, atol=1e-5)
        np.testing.assert_allclose(header.get_qform(), affine, atol=1e-4)
        assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1.0, 0.0)
        assert bytes(header["descrip"]).rstrip(b"\0") == b"?" * 79

    @pytest.mark.parametrize(("codes", "kept"), [((2, 0), (2, 2)), ((0, 2), (2, 2)), ((4, 2), (4, 2))])
    def test_codes_of_the_source(self, codes: tuple[int, int], kept: tuple[int, int], tmp_path: Path) -> None:
        grid = Grid(SHAPE, affine_of(ORDERS[3]))
        write_volume(
            tmp_path / "scan.nii", hounsfield(), grid, nifti=dict(zip(("sform_code", "qform_code"), codes, strict=True))
        )
        header = nib.load(tmp_path / "scan.nii").header
        assert (int(header["sform_code"]), int(header["qform_code"])) == kept

    def test_an_unknown_orientation_stays_unknown(self, tmp_path: Path) -> None:
        source = nib.Nifti1Image(hounsfield(), None)
        source.header.set_zooms((1.0, 2.0, 3.0))
        nib.save(source, tmp_path / "source.nii")
        with pytest.warns(UserWarning, match="orientation is unknown"):
            grid = grid_of(read_volume(tmp_path / "source.nii"))
        none = {"sform_code": 0, "qform_code": 0}
        write_volume(tmp_path / "copy.nii", hounsfield(), grid, nifti=none)
        with pytest.warns(UserWarning, match="orientation is unknown"):
            assert grid_of(read_volume(tmp_path / "copy.nii")).matches(grid)
        with pytest.raises(ValueError, match="leave the affine out"):
            write_volume(tmp_path / "copy.nii", hounsfield(), Grid(SHAPE, affine_of(ORDERS[3])), nifti=none)

    def test_a_sheared_affine_has_no_qform(self, tmp_path: Path) -> None:
        write_volume(tmp_path / "scan.nii", hounsfield(), sheared())
        header = nib.load(tmp_path / "scan.nii").header
        assert int(header["qform_code"]) == 0
        np.testing.assert_allclose(header.get_zooms(), sheared().spacing, rtol=1e-6)

    @pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
    def test_the_same_volume_is_the_same_bytes(
        self, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, now in (("a", 1e9), ("b", 2e9)):  # gzip may hold a time
            monkeypatch.setattr("time.time", lambda now=now: now)
            write_volume(tmp_path / f"{name}{suffix}", hounsfield(), Grid(SHAPE, affine_of(ORDERS[5])))
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


class TestWholeOrAbsent:
    def test_one_file_and_nothing_else(self, tmp_path: Path) -> None:
        for suffix in VOLUME_SUFFIXES:
            write_volume(tmp_path / "new" / f"scan{suffix}", hounsfield(), Grid(SHAPE, np.eye(4)))
        assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(f"scan{s}" for s in VOLUME_SUFFIXES)

    def test_a_failed_write_leaves_what_was_there(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"scan{suffix}" for suffix in VOLUME_SUFFIXES]
        for path in paths:
            write_volume(path, hounsfield(), Grid(SHAPE, np.eye(4)))
        before = [path.read_bytes() for path in paths]
        # The system refuses every file above 100 kB, as a full disk would.
        program = """
import resource, sys, numpy as np
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from medcyclegan.io.grid import Grid
from medcyclegan.io.writer import write_volume
values = np.random.default_rng(0).integers(0, 30000, (64, 64, 64)).astype(np.int16)
for path in sys.argv[1:]:
    try:
        write_volume(path, values, Grid((64, 64, 64), np.eye(4)))
    except OSError as error:
        print(error.filename, len(str(error)) - len(path) < 100, "cannot write the volume" in str(error))
"""
        arguments = [sys.executable, "-c", program, *map(str, paths)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.stdout.strip().splitlines() == [f"{path} True True" for path in paths], done.stderr
        assert [path.read_bytes() for path in paths] == before
        assert sorted(tmp_path.iterdir()) == sorted(paths)

    @pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
    def test_a_full_disk_has_its_own_number(self, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(path: Path, content: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(Path, "write_bytes", fail)
        path = tmp_path / f"scan{suffix}"
        with pytest.raises(OSError, match="cannot write the volume: No space left") as caught:
            write_volume(path, hounsfield(), Grid(SHAPE, np.eye(4)))
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    def test_suffix_type_and_shape(self, tmp_path: Path) -> None:
        grid = Grid(SHAPE, np.eye(4))
        with pytest.raises(InputError, match=r"scan\.dcm: not a volume format.*\.nrrd"):
            write_volume(tmp_path / "scan.dcm", hounsfield(), grid)
        with pytest.raises(TypeError, match="got float64"):
            write_volume(tmp_path / "scan.nii", hounsfield().astype(np.float64), grid)
        with pytest.raises(ValueError, match="does not fit the grid"):
            write_volume(tmp_path / "scan.nii", hounsfield()[1:], grid)
        assert list(tmp_path.iterdir()) == []


class TestToInt16:
    def test_half_goes_to_even(self) -> None:
        values = np.array([-1024.5, -0.5, 0.5, 1.5, 2.5, 32767.4, -32768.0])
        result = to_int16(values)
        assert result.dtype == np.int16
        assert result.tolist() == [-1024, 0, 0, 2, 2, 32767, -32768]

    @pytest.mark.parametrize("value", [np.nan, np.inf, 32767.6, -32769.0])
    def test_what_does_not_fit_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="int16"):
            to_int16(np.array([0.0, value]))


class TestMonaiWriter:
    @pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
    @pytest.mark.parametrize("dtype", [np.int16, np.float32])
    def test_save_image(self, suffix: str, dtype: type, tmp_path: Path) -> None:
        affine = affine_of(ORDERS[20], 9.0)
        volume = as_volume(MetaTensor(torch.from_numpy(hounsfield()), affine=torch.from_numpy(affine)))
        save = SaveImage(tmp_path, "", suffix, output_dtype=dtype, separate_folder=False, print_log=False)
        assert save.writers[0] is SimpleITKWriter
        save(volume, filename=tmp_path / "scan")
        loaded = LoadImage(image_only=True)(str(tmp_path / f"scan{suffix}"), reader=SimpleITKReader())
        np.testing.assert_array_equal(loaded.numpy(), hounsfield())
        np.testing.assert_allclose(loaded.affine.numpy(), affine, atol=1e-12)

    def test_several_channels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="one channel"):
            SimpleITKWriter().set_data_array(torch.zeros(2, 3, 3, 3))

    def test_other_formats_still_have_their_writers(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save = SaveImage(tmp_path, "", ".nii.gz", separate_folder=False, print_log=False)
        assert save.writers[0].__name__ == "NibabelWriter"
