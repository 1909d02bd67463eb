"""Voxels on disk: exactly what the header describes, from any encoding and any number of files, or a refusal."""

from __future__ import annotations

import bz2
import gzip
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medcyclegan.errors import InputError
from medcyclegan.io.headers import read_header
from medcyclegan.io.reader import SimpleITKReader, read_volume, volume_files

SHAPE = (6, 5, 4)
VALUES = np.random.default_rng(3).integers(-1000, 2000, SHAPE).astype("<i2")
RAW = VALUES.tobytes(order="F")
# LPS: directions, spacing and origin all different.
AXES = np.array([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0], [0.0, 0.8, -0.6]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.diag([-1, -1, 1]) @ (AXES.T * [1.5, 1.25, 3.0])
AFFINE[:3, 3] = [-10, 20, -30]

MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 0.6 0.8 1 0 0 0 0.8 -0.6",
    "Offset": "10 -20 -30",
    "ElementSpacing": "1.5 1.25 3",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(0,0.9,1.2) (1.25,0,0) (0,2.4,-1.8)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,-20,-30)",
}


def mha(folder: Path, data: bytes = RAW, **changes: str | None) -> Path:
    """A MetaImage; a field of None is left out, `ElementDataFile` stays last."""
    fields = MHA | changes
    lines = [f"{key} = {value}\n" for key, value in fields.items() if value is not None and key != "ElementDataFile"]
    path = folder / "scan.mha"
    path.write_bytes("".join([*lines, f"ElementDataFile = {fields['ElementDataFile']}\n"]).encode() + data)
    return path


def nrrd(folder: Path, data: bytes = RAW, changes: dict[str, str | None] | None = None, detached: str = "") -> Path:
    """An NRRD; a field of None is left out, `detached` is the last line of a header without data."""
    fields = NRRD | (changes or {})
    lines = [f"{key}: {value}\n" for key, value in fields.items() if value is not None]
    path = folder / "scan.nrrd"
    head = "NRRD0005\n# comment\nowner:=nobody\n" + "".join(lines)
    path.write_bytes(f"{head}{detached}".encode() if detached else f"{head}\n".encode() + data)
    return path


def slices(folder: Path, first: int = 1) -> list[str]:
    """A file of raw voxels per slice."""
    names = [f"s{k:02d}.raw" for k in range(first, first + SHAPE[2])]
    for k, name in enumerate(names):
        (folder / name).write_bytes(VALUES[:, :, k].tobytes(order="F"))
    return names


def check(path: Path) -> None:
    """Read by us as it was made."""
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.numpy()[0], VALUES)
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-12)
    header = read_header(path)
    np.testing.assert_array_equal(header.grid.affine, volume.affine.numpy())
    assert (header.grid.shape, header.stored) == (SHAPE, "int16")


class TestMetaImage:
    def test_as_simpleitk_reads_it(self, tmp_path: Path) -> None:
        path = mha(tmp_path)
        check(path)
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, VALUES)
        world = AFFINE @ [5, 1, 3, 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 1, 3)), world[:3] * [-1, -1, 1], atol=1e-9)

    @pytest.mark.parametrize(
        "same",
        [
            {"Offset": None, "Position": "10 -20 -30"},
            {"TransformMatrix": None, "Rotation": MHA["TransformMatrix"]},
            {"ElementSpacing": None, "ElementSize": "1.5 1.25 3"},
            {"BinaryDataByteOrderMSB": None},
            {"HeaderSize": "-1"},
            {"Comment": "a = b", "DistanceUnits": "mm", "ElementToIntensityFunctionSlope": "1"},
        ],
    )
    def test_the_same_in_other_words(self, same: dict[str, str | None], tmp_path: Path) -> None:
        check(mha(tmp_path, **same))

    def test_encodings(self, tmp_path: Path) -> None:
        packed = zlib.compress(RAW)
        check(mha(tmp_path, packed, CompressedData="True", CompressedDataSize=str(len(packed))))
        check(mha(tmp_path, packed, CompressedData="True"))
        check(mha(tmp_path, gzip.compress(RAW), CompressedData="True"))
        check(mha(tmp_path, " ".join(map(str, VALUES.ravel(order="F"))).encode(), BinaryData="False"))
        check(mha(tmp_path, VALUES.astype(">i2").tobytes(order="F"), BinaryDataByteOrderMSB="True"))

    def test_several_files(self, tmp_path: Path) -> None:
        names = slices(tmp_path)
        for data in (
            "LIST\n" + "\n".join(names) + "\n",
            "LIST 2D\n" + "\n".join(names),
            "s%02d.raw 1 4 1",
            "s%02d.raw",
        ):
            path = mha(tmp_path, b"", ElementDataFile=data)
            check(path)
            assert volume_files(path) == [path, *(tmp_path / name for name in names)]
        (tmp_path / "all.raw").write_bytes(b"head" + RAW)
        path = mha(tmp_path, b"", ElementDataFile="all.raw", HeaderSize="4")
        check(path)
        assert volume_files(path) == [path, tmp_path / "all.raw"]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"NDims": "-1"}, "-1 dimensions"),
            ({"NDims": "0"}, "0 dimensions"),
            ({"ElementDataFile": "s%02d.raw 1 4 1 1"}, "which is not 4 files"),
            ({"NDims": "99999999"}, "dimensions"),
            ({"DimSize": "6 5"}, "DimSize as '6 5'; 3 whole numbers"),
            ({"DimSize": "6 5 -4"}, "which is no volume"),
            ({"DimSize": "60000 50000 40000"}, "cut short: 240 of 240000000000000 bytes"),
            ({"DimSize": "6 5 3"}, "describes 180 bytes of voxels"),
            ({"Offset": "x"}, "Offset as 'x'; 3 numbers"),
            ({"Offset": "1,5 2 3"}, "Offset as '1,5 2 3'"),
            ({"Offset": "nan 2 3"}, "Offset as 'nan 2 3'"),
            ({"Origin": "1 2 3"}, "gives Offset twice"),
            ({"ElementSpacing": None}, "no voxel size"),
            ({"ElementSpacing": "1.5 1.25 0"}, "cannot be inverted"),
            ({"ElementSpacing": "1.5 -1.25 3"}, "which cannot be"),
            ({"TransformMatrix": "1 0 0"}, "9 numbers"),
            ({"DistanceUnits": "um"}, "'um'"),
            ({"ElementToIntensityFunctionOffset": "-1024"}, "scales the voxels"),
            ({"ElementType": "MET_STRING"}, "MET_STRING"),
            ({"ElementNumberOfChannels": "2", "DimSize": "6 5 2"}, "2 values per voxel"),
            ({"CompressedData": "maybe"}, "'maybe'"),
            ({"CompressedDataSize": "240"}, "CompressedData is not True"),
            ({"HeaderSize": "8"}, "HeaderSize"),
            ({"ObjectType": "Tube"}, "'Tube'"),
            ({"Comment": "\0"}, "NUL"),
            ({"Comment": "x\nno field here"}, "breaks off or is damaged at byte"),
        ],
    )
    def test_wild_headers(self, change: dict[str, str | None], reason: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=reason):
            read_volume(mha(tmp_path, **change))

    @pytest.mark.parametrize("field", ["TransformMatrix", "Offset"])
    def test_what_is_missing_is_said(self, field: str, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match=f"gives no {field}"):
            read_volume(mha(tmp_path, **{field: None}))


class TestNrrd:
    def test_as_simpleitk_reads_it(self, tmp_path: Path) -> None:
        path = nrrd(tmp_path)
        check(path)
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, VALUES)
        world = AFFINE @ [5, 1, 3, 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 1, 3)), world[:3] * [-1, -1, 1], atol=1e-9)

    def test_spaces_that_say_nothing_of_the_patient(self, tmp_path: Path) -> None:
        others: tuple[dict[str, str | None], ...] = ({"space": "scanner-xyz"}, {"space": None, "space dimension": "3"})
        for changes in others:
            with pytest.warns(UserWarning, match="orientation is unknown"):
                read_volume(nrrd(tmp_path, changes=changes))

    @pytest.mark.parametrize("space", ["RAS", "LAS", "LPS", *(f"{x}-anterior-superior" for x in ("left", "right"))])
    def test_spaces(self, space: str, tmp_path: Path) -> None:
        path = nrrd(tmp_path, changes={"space": space})
        image = sitk.ReadImage(str(path))
        lps = read_volume(path).affine.numpy() @ [5, 1, 3, 1] * [-1, -1, 1, 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 1, 3)), lps[:3], atol=1e-9)

    @pytest.mark.parametrize(
        ("encoding", "data"),
        [
            ("gzip", gzip.compress(RAW)),
            ("gz", gzip.compress(RAW[:100]) + gzip.compress(RAW[100:])),
            ("bzip2", bz2.compress(RAW)),
            ("hex", RAW.hex().encode()),
            ("ascii", "\n".join(map(str, VALUES.ravel(order="F"))).encode()),
        ],
    )
    def test_encodings(self, encoding: str, data: bytes, tmp_path: Path) -> None:
        check(nrrd(tmp_path, data, {"encoding": encoding}))

    def test_several_files_skips_and_byte_orders(self, tmp_path: Path) -> None:
        names = slices(tmp_path)
        for last in ("LIST\n" + "\n".join(names), "s%02d.raw 1 4 1\n"):
            path = nrrd(tmp_path, detached=f"data file: {last}")
            check(path)
            assert volume_files(path) == [path, *(tmp_path / name for name in names)]
        check(nrrd(tmp_path, b"one\ntwo\nxyz" + RAW, {"line skip": "2", "byte skip": "3"}))
        check(nrrd(tmp_path, b"anything" + RAW, {"byte skip": "-1"}))
        check(nrrd(tmp_path, gzip.compress(b"xyz" + RAW), {"byte skip": "3", "encoding": "gzip"}))
        check(nrrd(tmp_path, VALUES.astype(">i2").tobytes(order="F"), {"endian": "big"}))

    def test_a_list_without_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="names 0 data files"):
            read_volume(nrrd(tmp_path, detached="data file: LIST 3\n"))

    def test_axes_beside_space(self, tmp_path: Path) -> None:
        directions = NRRD["space directions"]
        check(nrrd(tmp_path, changes={"dimension": "4", "sizes": "1 6 5 4", "space directions": f"none {directions}"}))
        check(nrrd(tmp_path, changes={"dimension": "4", "sizes": "6 5 4 1", "space directions": f"{directions} none"}))
        changes: dict[str, str | None] = {
            "dimension": "4",
            "sizes": "2 6 5 4",
            "space directions": f"none {directions}",
        }
        path = nrrd(tmp_path, RAW + RAW, changes)
        with pytest.raises(InputError, match="2 values per voxel"):
            read_volume(path)
        array, _ = SimpleITKReader().get_data(SimpleITKReader().read(path))
        np.testing.assert_array_equal(
            array, np.frombuffer(RAW + RAW, "<i2").reshape(2, 6, 5, 4, order="F").transpose(1, 2, 3, 0)
        )

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"space directions": None}, "no voxel size"),
            ({"space directions": "none none none"}, "no voxel size"),
            ({"space directions": "(1,0,0) (0,1,0)"}, "2 space directions for 3 axes"),
            ({"space directions": "( (1,0,0) (0,1,0) (0,0,1)"}, "stray"),
            ({"kinds": "domain domain time"}, "'time', which is no axis of space"),
            ({"kinds": "domain domain"}, "2 kinds for 3 axes"),
            ({"spacings": "1 1 9"}, "both space directions and spacings"),
            ({"space directions": "(1,0,0) (0,1,x) (0,0,1)"}, "3 numbers"),
            ({"space directions": "(1,0,0) (0,1) (0,0,1)"}, "3 numbers"),
            ({"space directions": "(1,0,0) (0,0,0) (0,0,1)"}, "cannot be inverted"),
            ({"space": "left-poserior-superior"}, "does not know: 'left-poserior-superior'"),
            ({"space units": '"cm" "cm" "cm"'}, "cm"),
            ({"space units": '"microns" "microns" "microns"'}, "microns"),
            ({"space origin": "(1,2)x"}, "space origin"),
            ({"sizes": "6 5 4 1"}, "3 whole numbers"),
            ({"sizes": "6 5 0"}, "no volume"),
            ({"sizes": "6 5 400"}, "cut short: 240 of 24000 bytes"),
            ({"dimension": "-3"}, "dimensions"),
            ({"type": "block"}, "'block'"),
            ({"encoding": "zip"}, "'zip'"),
            ({"endian": None}, "order of bytes"),
            ({"sapce units": "x"}, "does not know"),
            ({"content": "\0"}, "NUL"),
            ({"Type": "int"}, "'type' twice"),
            ({"byte skip": "-2"}, "leaves out"),
            ({"byte skip": "-1", "encoding": "gzip"}, "0 lines and -1 bytes"),
            ({"byte skip": "-1", "line skip": "1"}, "1 lines and -1 bytes"),
        ],
    )
    def test_wild_headers(self, change: dict[str, str | None], reason: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=reason):
            read_volume(nrrd(tmp_path, changes=change))


OUTSIDE = ["/etc/hostname", "../other/x.raw", "sub/../../x.raw", "C:\\x.raw", "..\\x.raw", "scan.{format}", ""]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("format_", ["mha", "nrrd"])
def test_data_lie_beside_their_header(format_: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    (tmp_path / "other").mkdir()
    folder.mkdir()
    (tmp_path / "other" / "x.raw").write_bytes(RAW)
    (tmp_path / "x.raw").write_bytes(RAW)
    name = name.format(format=format_)
    for data in (name, f"LIST\n{name}\n{name}\n{name}\n{name}"):
        if format_ == "mha":
            path = mha(folder, b"", ElementDataFile=data)
        else:
            path = nrrd(folder, detached=f"data file: {data}")
        with pytest.raises(InputError, match=r"beside the header|names itself|names 0 data files|has no end"):
            read_volume(path)
        assert volume_files(path) == [path]


def test_more_data_files_than_any_volume_has(tmp_path: Path) -> None:
    for path in (
        mha(tmp_path, b"", DimSize="6 5 900000000", ElementDataFile="s%d.raw"),
        nrrd(tmp_path, changes={"sizes": "6 5 900000000"}, detached="data file: s%d.raw 1 900000000 1\n"),
    ):
        with pytest.raises(InputError, match="names 900000000 data files"):
            read_volume(path)


def test_data_may_lie_below_their_header(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.raw").write_bytes(RAW)
    check(mha(tmp_path, b"", ElementDataFile="raw/x.raw"))
    check(nrrd(tmp_path, detached="data file: ./raw/x.raw\n"))


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


def stream(format_: str) -> bytes:
    if format_.startswith("mha"):
        return zlib.compress(RAW)
    if format_ == "nrrd":
        return gzip.compress(RAW, mtime=0)
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.set_qform(AFFINE, 1)
    return gzip.compress(image.to_bytes(), mtime=0)


@pytest.mark.parametrize("format_", ["mha", "mha without size", "nrrd", "nifti"])
class TestCompressed:
    def test_no_damage_is_read(self, format_: str, tmp_path: Path) -> None:
        whole = stream(format_)
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


def test_slices_for_the_monai_reader(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(VALUES[:, :, 0].T)
    image.SetSpacing((1.5, 2.5))
    image.SetOrigin((3, 4))
    image.SetDirection((0, 1, -1, 0))
    for name in ("slice.nrrd", "slice.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        array, meta = SimpleITKReader().get_data(SimpleITKReader().read(tmp_path / name))
        np.testing.assert_array_equal(array, VALUES[:, :, 0])
        np.testing.assert_allclose(meta["affine"][:2, [0, 1, 3]], [[0, -2.5, -3], [1.5, 0, -4]])


def test_the_monai_reader_checks_as_well(tmp_path: Path) -> None:
    data = bytearray(zlib.compress(RAW))
    data[-1] ^= 1
    with pytest.raises(InputError, match="checksum"):
        SimpleITKReader().read(mha(tmp_path, bytes(data), CompressedData="True"))
