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
from medcyclegan.io.reader import read_header, read_volume, volume_files


@pytest.fixture(autouse=True)
def no_unexpected_warnings() -> None:
    warnings.simplefilter("error")


PACKED = ("nii.gz", "mha", "mha without size", "nrrd")
PLAIN = ("nii plain", "mha plain", "nrrd plain", "mha apart")


def contents(kind: str, level: int = 6, extra: bytes = b"") -> bytes:
    """The scan as it lies in a file of this kind behind a header of text, `extra` behind the last voxel."""
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.set_qform(AFFINE, 1)
    data = (image.to_bytes() if kind.startswith("nii") else RAW) + extra
    if kind in PLAIN:
        return data
    return zlib.compress(data, level) if kind.startswith("mha") else gzip.compress(data, level, mtime=0)


def hold(folder: Path, kind: str, data: bytes) -> Path:
    """A file of this kind with such contents."""
    if kind.startswith("nii"):
        path = folder / f"scan.{kind.removesuffix(' plain')}"
        path.write_bytes(data)
        return path
    if kind.startswith("nrrd"):
        return nrrd(folder, data, {"encoding": "raw" if kind in PLAIN else "gzip"})
    if kind == "mha apart":
        (folder / "all.raw").write_bytes(data)
        return mha(folder, b"", ElementDataFile="all.raw")
    size = {"CompressedDataSize": str(len(data))} if kind == "mha" else {}
    return mha(folder, data, CompressedData=str(kind not in PLAIN), **size)


@pytest.mark.parametrize("kind", [*PACKED, *PLAIN])
def test_a_part_of_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = hold(tmp_path, kind, contents(kind))
    np.testing.assert_array_equal(read_volume(path).numpy()[0], VALUES)
    file = volume_files(path)[-1]
    whole = file.read_bytes()
    sizes = (0, 1, 3, 5, 100, 347, 351, 400, len(whole) // 2, len(whole) - 9, len(whole) - 1)
    for part in (*(whole[:size] for size in sizes if size < len(whole)), b"this is not a volume\n" * 50):
        file.write_bytes(part)
        with pytest.raises(InputError) as caught:
            read_volume(path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message and len(message) < 300 + len(str(path))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("level", [0, 6])  # 0: stored, so that only the checksum tells a changed voxel
def test_no_damage_is_read(kind: str, level: int, tmp_path: Path) -> None:
    warnings.simplefilter("ignore")  # a damaged header may contradict itself
    whole = contents(kind, level)
    random = np.random.default_rng(11)
    # Bytes 4 to 9 of gzip are the time and the system, which nothing is made of.
    for place in random.choice(np.arange(2 if kind.startswith("mha") else 10, len(whole)), 60, replace=False):
        data = bytearray(whole)
        data[place] ^= 1 << int(random.integers(8))
        with pytest.raises(InputError, match=r"damaged|too early|cut short|bytes of voxels"):
            read_volume(hold(tmp_path, kind, bytes(data)))


@pytest.mark.parametrize("kind", PACKED)
def test_what_follows_compressed_data_is_said(kind: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="8 bytes after the end of the compressed data are left out"):
        volume = read_volume(hold(tmp_path, kind, contents(kind) + b"a footer"))
    np.testing.assert_array_equal(volume.numpy()[0], VALUES)
    read_volume(hold(tmp_path, kind, contents(kind) + bytes(100)))


@pytest.mark.parametrize("extra", [1, 59, 60])
@pytest.mark.parametrize("kind", [*PACKED, *PLAIN])
def test_bytes_after_the_voxels(kind: str, extra: int, tmp_path: Path) -> None:
    """Zeros of less than a slice (60 bytes) are padding; more contradicts the header. A file apart must fit exactly."""
    path = hold(tmp_path, kind, contents(kind, extra=bytes(extra)))
    if extra < 60 and kind != "mha apart":
        with pytest.warns(UserWarning, match=rf"{extra} bytes of padding follow the last voxel"):
            read_volume(path)
    else:
        where = r".* in all\.raw" if kind == "mha apart" else ""
        with pytest.raises(InputError, match=f"describes 240 bytes of voxels{where}"):
            read_volume(path)
    if kind in PLAIN:  # inserted somewhere, they push voxels out at the end
        whole = contents(kind)
        with pytest.raises(InputError, match="describes 240 bytes of voxels"):
            read_volume(hold(tmp_path, kind, whole[:-200] + b"\1" * extra + whole[-200:]))


def test_a_stream_that_claims_more_than_it_can_hold(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(1000))
    for reads in (read_volume, read_header):
        with pytest.raises(InputError, match="cannot hold 240000000000000 bytes"):
            reads(mha(tmp_path, packed, CompressedData="True", DimSize="60000 50000 40000"))
    # And one that holds far more than it claims is not inflated to its end.
    with pytest.raises(InputError, match="describes 240 bytes"):
        read_volume(mha(tmp_path, zlib.compress(bytes(1 << 26)), CompressedData="True"))


def test_what_itk_keeps_of_other_formats_is_no_damage(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(VALUES.T)
    image.SetSpacing((1.5, 1.25, 3.0))
    for name in ("dim[0]", "pixdim[1]", "0008|0060", "aux file"):
        image.SetMetaData(name, "a: value = 3")
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    assert b"dim[0] = " in (tmp_path / "x.mha").read_bytes()
    assert np.array_equal(read_volume(tmp_path / "x.mha")[0], VALUES)
