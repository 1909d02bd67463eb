"""Voxels on disk: exactly what the header describes, from any encoding, or a refusal."""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scans import AFFINE, RAW, VALUES, mha, nrrd

from medcyclegan.errors import InputError
from medcyclegan.io.headers import read_header
from medcyclegan.io.reader import read_volume


def compressed(folder: Path, format_: str, data: bytes) -> Path:
    if format_ == "mha":
        return mha(folder, data, CompressedData="True", CompressedDataSize=str(len(data)))
    if format_ == "mha without size":
        return mha(folder, data, CompressedData="True")
    if format_ == "nrrd":
        return nrrd(folder, data, {"encoding": "gzip"})
    path = folder / "scan.nii.gz"
    path.write_bytes(data)
    return path


def stream(format_: str, level: int = 6) -> bytes:
    if format_.startswith("mha"):
        return zlib.compress(RAW, level)
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.set_qform(AFFINE, 1)
    return gzip.compress(RAW if format_ == "nrrd" else image.to_bytes(), level, mtime=0)


@pytest.mark.parametrize("format_", ["mha", "mha without size", "nrrd", "nifti"])
class TestCompressed:
    @pytest.mark.parametrize("level", [0, 6])  # 0: stored, so that only the checksum tells a changed voxel
    def test_no_damage_is_read(self, format_: str, level: int, tmp_path: Path) -> None:
        whole = stream(format_, level)
        random = np.random.default_rng(11)
        # Bytes 4 to 9 of gzip are the time and the system, which nothing is made of.
        first = 2 if format_.startswith("mha") else 10
        for place in random.choice(np.arange(first, len(whole)), 60, replace=False):
            data = bytearray(whole)
            data[place] ^= 1 << int(random.integers(8))
            with pytest.raises(InputError, match=r"damaged|too early|cut short|bytes of voxels"):
                read_volume(compressed(tmp_path, format_, bytes(data)))
        for kept in (0, 1, 5, len(whole) // 2, len(whole) - 9, len(whole) - 1):
            with pytest.raises(InputError):
                read_volume(compressed(tmp_path, format_, whole[:kept]))

    def test_what_follows_is_said(self, format_: str, tmp_path: Path) -> None:
        path = compressed(tmp_path, format_, stream(format_) + b"a footer")
        with pytest.warns(UserWarning, match="8 bytes after the end of the compressed data are left out"):
            volume = read_volume(path)
        np.testing.assert_array_equal(volume.numpy()[0], VALUES)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_volume(compressed(tmp_path, format_, stream(format_) + bytes(100)))


@pytest.mark.parametrize("extra", [1, 59, 60])
def test_bytes_after_the_voxels(extra: int, tmp_path: Path) -> None:
    """Zeros of less than a slice (60 bytes) are padding; more contradicts the header. A file apart must fit exactly."""
    image = nib.Nifti1Image(VALUES, AFFINE)
    (tmp_path / "scan.nii").write_bytes(image.to_bytes() + bytes(extra))
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(image.to_bytes() + bytes(extra)))
    attached = [tmp_path / "scan.nii", tmp_path / "scan.nii.gz", mha(tmp_path, RAW + bytes(extra))]
    attached.append(nrrd(tmp_path, gzip.compress(RAW + bytes(extra)), {"encoding": "gzip"}))
    for path in attached:
        if extra < 60:
            with pytest.warns(UserWarning, match=rf"{extra} bytes of padding follow the last voxel"):
                read_volume(path)
        else:
            with pytest.raises(InputError, match="describes 240 bytes of voxels"):
                read_volume(path)
    # Bytes inserted somewhere push voxels out at the end.
    image_bytes = image.to_bytes()
    (tmp_path / "scan.nii").write_bytes(image_bytes[:400] + b"\1" * extra + image_bytes[400:])
    for path in (tmp_path / "scan.nii", mha(tmp_path, RAW + b"\1" * extra), nrrd(tmp_path, RAW + b"\1" * extra)):
        with pytest.raises(InputError, match="describes 240 bytes of voxels"):
            read_volume(path)
    (tmp_path / "all.raw").write_bytes(RAW + bytes(extra))
    with pytest.raises(InputError, match=r"describes 240 bytes of voxels.*in all\.raw"):
        read_volume(mha(tmp_path, b"", ElementDataFile="all.raw"))


def test_a_stream_that_claims_more_than_it_can_hold(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(1000))
    for reads in (read_volume, read_header):
        with pytest.raises(InputError, match="cannot hold 240000000000000 bytes"):
            reads(mha(tmp_path, packed, CompressedData="True", DimSize="60000 50000 40000"))
    # And one that holds far more than it claims is not inflated to its end.
    with pytest.raises(InputError, match="describes 240 bytes"):
        read_volume(mha(tmp_path, zlib.compress(bytes(1 << 26)), CompressedData="True"))


def test_numbers_as_text_are_checked(tmp_path: Path) -> None:
    good = list(map(str, VALUES.ravel(order="F")))
    for bad, reason in (
        ("x", "not all of it is numbers"),
        ("1.5", "not all"),
        ("40000", "not all"),
        ("1 2", "121 numb"),
    ):
        for path in (
            nrrd(tmp_path, " ".join([*good[:-1], bad]).encode(), {"encoding": "ascii"}),
            mha(tmp_path, " ".join([*good[:-1], bad]).encode(), BinaryData="False"),
        ):
            with pytest.raises(InputError, match=reason):
                read_volume(path)


def test_what_itk_keeps_of_other_formats_is_no_damage(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(VALUES.T)
    image.SetSpacing((1.5, 1.25, 3.0))
    for name in ("dim[0]", "pixdim[1]", "0008|0060", "aux file"):
        image.SetMetaData(name, "a: value = 3")
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    assert b"dim[0] = " in (tmp_path / "x.mha").read_bytes()
    assert np.array_equal(read_volume(tmp_path / "x.mha")[0], VALUES)
