"""Headers of files: what they say in any of their words, and everything wild in them refused or warned of by name."""

from __future__ import annotations

import bz2
import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scans import AFFINE, MHA, NRRD, RAW, SHAPE, VALUES, mha, nifti, nrrd, write

from medcyclegan.errors import InputError
from medcyclegan.io.reader import SimpleITKReader, as_volume, read_header, read_volume, volume_files

NAN, INF = float("nan"), float("inf")
BIG = VALUES.astype(">i2").tobytes(order="F")
TEXT = "\n".join(map(str, VALUES.ravel(order="F"))).encode()
DIRECTIONS = NRRD["space directions"]
KINDS = ("nii", "nii.gz", "mha", "nrrd")


def check(path: Path) -> None:
    """Read by us as it was made; NIfTI has 32-bit numbers."""
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.numpy()[0], VALUES)
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-4 if ".nii" in path.name else 1e-12)
    header = read_header(path)
    np.testing.assert_array_equal(header.grid.affine, volume.affine.numpy())
    assert (header.grid.shape, header.stored) == (SHAPE, "int16")


@pytest.fixture(autouse=True)
def no_unexpected_warnings() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


SAME: list[tuple[str, dict[str, Any], bytes]] = [
    *((kind, {}, RAW) for kind in KINDS),
    ("nii", {"xyzt_units": 66}, RAW),  # an unknown unit of time: nothing here lasts
    ("nii", {"xyzt_units": 0}, RAW),
    ("nii", {"forms": "q"}, RAW),
    ("nii", {"forms": "q", "qfac": 0}, RAW),  # nifti1.h: taken for 1
    ("nii", {"scl_slope": 0}, RAW),
    ("mha", {"Offset": None, "Position": "10 -20 -30"}, RAW),
    ("mha", {"TransformMatrix": None, "Rotation": MHA["TransformMatrix"]}, RAW),
    ("mha", {"ElementSpacing": None, "ElementSize": "1.5 1.25 3"}, RAW),
    ("mha", {"BinaryDataByteOrderMSB": None}, RAW),
    ("mha", {"HeaderSize": "-1"}, RAW),
    ("mha", {"Comment": "a = b", "DistanceUnits": "mm", "ElementToIntensityFunctionSlope": "1"}, RAW),
    ("mha", {"CompressedData": "True", "CompressedDataSize": str(len(zlib.compress(RAW)))}, zlib.compress(RAW)),
    ("mha", {"CompressedData": "True"}, zlib.compress(RAW)),
    ("mha", {"CompressedData": "True"}, gzip.compress(RAW)),
    ("mha", {"BinaryData": "False"}, TEXT),
    ("mha", {"BinaryDataByteOrderMSB": "True"}, BIG),
    ("nrrd", {"encoding": "gzip"}, gzip.compress(RAW)),
    ("nrrd", {"encoding": "gz"}, gzip.compress(RAW[:100]) + gzip.compress(RAW[100:])),
    ("nrrd", {"encoding": "bzip2"}, bz2.compress(RAW)),
    ("nrrd", {"encoding": "hex"}, RAW.hex().encode()),
    ("nrrd", {"encoding": "ascii"}, TEXT),
    ("nrrd", {"endian": "big"}, BIG),
    ("nrrd", {"line skip": "2", "byte skip": "3"}, b"one\ntwo\nxyz" + RAW),
    ("nrrd", {"byte skip": "-1"}, b"anything" + RAW),
    ("nrrd", {"byte skip": "3", "encoding": "gzip"}, gzip.compress(b"xyz" + RAW)),
    ("nrrd", {"dimension": "4", "sizes": "1 6 5 4", "space directions": f"none {DIRECTIONS}"}, RAW),
    ("nrrd", {"dimension": "4", "sizes": "6 5 4 1", "space directions": f"{DIRECTIONS} none"}, RAW),
]


@pytest.mark.parametrize(("kind", "changes", "data"), SAME)
def test_the_same_scan_in_other_words(kind: str, changes: dict[str, Any], data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, kind, changes, data)
    check(path)
    if not changes:
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, VALUES)
        world = AFFINE @ [5, 1, 3, 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 1, 3)), world[:3] * [-1, -1, 1], atol=1e-4)


@pytest.mark.parametrize("code", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_type_of_numbers(code: str, tmp_path: Path) -> None:
    values = (VALUES % 100).astype(code)
    nib.save(nib.Nifti1Image(values, AFFINE, dtype=np.dtype(code)), tmp_path / "scan.nii")
    for name in ("scan.nii", "scan.mha", "scan.nrrd"):
        if name != "scan.nii":
            sitk.WriteImage(sitk.GetImageFromArray(values.T), str(tmp_path / name))
        np.testing.assert_array_equal(read_volume(tmp_path / name).numpy()[0], values)
        assert np.dtype(read_header(tmp_path / name).stored) == code


FAULTS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "nii": [
        ({"dim": 0}, "dimensions"),
        ({"dim": 8}, "dimensions"),
        ({"dim": -3}, "dimensions"),
        ({"datatype": 8}, "datatype 8 \\(int32\\) has 32 bits per voxel, and bitpix is 16"),
        ({"datatype": 1}, "values of type 1"),
        ({"datatype": 1536, "bitpix": 128}, "values of type 1536"),
        ({"datatype": 128, "bitpix": 24}, "color"),
        ({"datatype": 32, "bitpix": 64}, "complex"),
        ({"vox_offset": 0}, "begin at byte 0"),
        ({"vox_offset": 348}, "begin at byte 348"),
        ({"vox_offset": 352.5}, r"begin at byte 352\.5"),
        ({"vox_offset": NAN}, "begin at byte nan"),
        ({"vox_offset": 1e9}, "cut short: 0 of 240 bytes"),
        ({"scl_slope": NAN}, "slope nan"),
        ({"scl_slope": INF}, "slope inf"),
        ({"scl_slope": 2, "scl_inter": NAN}, "intercept nan"),
        ({"xyzt_units": 5}, "unit 5"),
        ({"sform_code": 7}, "sform_code 7"),
        ({"sform_code": -1}, "sform_code -1"),
        ({"qform_code": 1000}, "qform_code 1000"),
        ({"forms": "q", "qfac": 1000}, "qfac"),
        ({"forms": "q", "qfac": NAN}, "qfac"),
        ({"forms": "q", "pixdim": 0}, "voxel size of 0"),
        ({"forms": "q", "pixdim": INF}, "voxel size of inf"),
        ({"forms": "q", "quatern_b": 2}, "no rotation"),
        ({"forms": "q", "quatern_b": NAN}, "no rotation"),
        ({"forms": "q", "qoffset_x": INF}, "no rotation"),
        ({"forms": "", "pixdim": 0}, "voxel size of 0"),
        ({"forms": "s", "srow_x": NAN}, "not finite"),
        ({"magic": b"ni1\0"}, r"NIfTI pair, whose voxels lie in an \.img file"),
        ({"magic": b"\0\0\0\0"}, "mark"),
    ],
    "mha": [
        ({"NDims": "-1"}, "-1 dimensions"),
        ({"NDims": "0"}, "0 dimensions"),
        ({"NDims": "99999999"}, "dimensions"),
        ({"NDims": None}, "has no 'NDims'"),
        ({"ElementDataFile": "s%02d.raw 1 4 1 1"}, "which is not 4 files"),
        ({"DimSize": "6 5"}, "DimSize as '6 5'; 3 whole numbers"),
        ({"DimSize": "6 5 -4"}, "which is no volume"),
        ({"DimSize": "60000 50000 40000"}, "cut short: 240 of 240000000000000 bytes"),
        ({"DimSize": "6 5 3"}, "describes 180 bytes of voxels"),
        ({"DimSize": "6 5 900000000", "ElementDataFile": "s%d.raw"}, "names 900000000 data files"),
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
    "nrrd": [
        ({"space directions": None}, "no voxel size"),
        ({"space directions": "none none none"}, "no voxel size"),
        ({"space directions": "(1,0,0) (0,1,0)"}, "2 space directions for 3 axes"),
        ({"space directions": "( (1,0,0) (0,1,0) (0,0,1)"}, "stray"),
        ({"space directions": "(1,0,0) (0,1,x) (0,0,1)"}, "3 numbers"),
        ({"space directions": "(1,0,0) (0,1) (0,0,1)"}, "3 numbers"),
        ({"space directions": "(1,0,0) (0,0,0) (0,0,1)"}, "cannot be inverted"),
        ({"kinds": "domain domain time"}, "'time', which is no axis of space"),
        ({"kinds": "domain domain"}, "2 kinds for 3 axes"),
        ({"spacings": "1 1 9"}, "both space directions and spacings"),
        ({"space": "left-poserior-superior"}, "does not know: 'left-poserior-superior'"),
        ({"space units": '"cm" "cm" "cm"'}, "cm"),
        ({"space units": '"microns" "microns" "microns"'}, "microns"),
        ({"space origin": "(1,2)x"}, "space origin"),
        ({"sizes": "6 5 4 1"}, "3 whole numbers"),
        ({"sizes": "6 5 0"}, "no volume"),
        ({"sizes": "6 5 400"}, "cut short: 240 of 24000 bytes"),
        ({"sizes": "6 5 900000000", "data file": "s%d.raw 1 900000000 1\n"}, "names 900000000 data files"),
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
        ({"data file": "LIST 3\n"}, "names 0 data files"),
        ({"data file": "LIST 3\na\nb\nc\n"}, "names 3 data files, which do not fit its sizes"),
    ],
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "changes", "reason"), [(kind, *fault) for kind, faults in FAULTS.items() for fault in faults]
)
def test_a_wild_header_is_refused(kind: str, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, changes)
    for reads in (read_volume, read_header):
        with pytest.raises(InputError, match=reason) as caught:
            reads(path)
        assert str(path) in str(caught.value)


DOUBTS: list[tuple[str, dict[str, Any], str]] = [
    (
        "nii",
        {"scl_slope": 0, "scl_inter": -1024},
        "slope is 0, which means unscaled: the intercept of -1024 is",
    ),
    ("nii", {"forms": "q", "pixdim": -1.5}, "negative voxel size.*check left and right"),
    ("nii", {"xyzt_units": 1}, r"mm long; its lengths are taken for mm"),
    ("nii", {"xyzt_units": 3}, r"mm long; its lengths are taken for mm"),
    ("nii", {"pixdim": 5}, r"sform and qform disagree"),
    ("nii", {"forms": "s", "pixdim": 5}, r"scan\.nii: the voxel size in the header differs"),
    ("nii", {"qoffset_x": -5}, r"sform and qform disagree by up to 5\.0 mm"),
    ("nii", {"affine": np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE, "xyzt_units": 3, "qoffset_x": -5e3}, r"by up to 5\.0 mm"),
    ("nii", {"quatern_b": 2}, r"sform and qform disagree \(the qform is unusable\)"),
    ("nii", {"forms": ""}, r"scan\.nii: the orientation is unknown.*left and right"),
    ("mha", {"TransformMatrix": None}, "gives no TransformMatrix"),
    ("mha", {"Offset": None}, "gives no Offset"),
    ("nrrd", {"space": "scanner-xyz"}, "orientation is unknown"),
    ("nrrd", {"space": None, "space dimension": "3"}, "orientation is unknown"),
    (
        "nrrd",
        {**dict.fromkeys(("space", "space directions", "space origin")), "spacings": "1 2 3"},
        "no anatomical space",
    ),
]


@pytest.mark.parametrize(("kind", "changes", "words"), DOUBTS)
def test_a_doubtful_header_is_read_and_said(kind: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, changes)
    with pytest.warns(UserWarning, match=words):
        volume = read_volume(path)
    np.testing.assert_array_equal(volume.numpy()[0], VALUES)
    if "space" in changes and "spacings" not in changes:
        np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-12)
    if kind == "nii":
        scale = [1e-3, 1e-3, 1e-3, 1] if "affine" in changes else np.ones(4)
        np.testing.assert_allclose(volume.affine.numpy(), np.diag(scale) @ nib.load(path).affine, atol=1e-4)


@pytest.mark.parametrize(
    ("last", "reason"),
    [("x", "not all of it is numbers"), ("1.5", "not all"), ("40000", "not all"), ("1 2", "121 numb")],
)
@pytest.mark.parametrize(("kind", "changes"), [("mha", {"BinaryData": "False"}), ("nrrd", {"encoding": "ascii"})])
def test_numbers_as_text_are_checked(
    kind: str, changes: dict[str, Any], last: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        read_volume(write(tmp_path, kind, changes, b" ".join([*TEXT.split()[:-1], last.encode()])))


@pytest.mark.parametrize("space", ["RAS", "LAS", "LPS", *(f"{x}-anterior-superior" for x in ("left", "right"))])
def test_spaces_of_nrrd(space: str, tmp_path: Path) -> None:
    path = nrrd(tmp_path, changes={"space": space})
    image = sitk.ReadImage(str(path))
    lps = read_volume(path).affine.numpy() @ [5, 1, 3, 1] * [-1, -1, 1, 1]
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 1, 3)), lps[:3], atol=1e-9)


def test_components_are_channels_for_monai_only(tmp_path: Path) -> None:
    changes: dict[str, str | None] = {"dimension": "4", "sizes": "2 6 5 4", "space directions": f"none {DIRECTIONS}"}
    path = nrrd(tmp_path, RAW + RAW, changes)
    with pytest.raises(InputError, match="2 values per voxel"):
        read_volume(path)
    array, _ = SimpleITKReader().get_data(SimpleITKReader().read(path))
    expected = np.frombuffer(RAW + RAW, "<i2").reshape(2, *SHAPE, order="F").transpose(1, 2, 3, 0)
    np.testing.assert_array_equal(array, expected)


class TestNifti:
    @pytest.mark.parametrize("size", [0, 3, 100, 347, 351, 400])
    @pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
    def test_cut_anywhere(self, name: str, size: int, tmp_path: Path) -> None:
        content = nifti(tmp_path / "whole.nii").read_bytes()[:size]
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        with pytest.raises(InputError, match=r"cut short|is empty|not NIfTI"):
            read_volume(path)

    def test_a_rounded_quaternion(self, tmp_path: Path) -> None:
        """Half a turn has a = 0; its b, c and d rounded up give a length above 1, which other programs read."""
        affine = np.diag([-1.5, -1.25, 3.0, 1.0])
        for digit in (1 + 1e-7, 1 + 1e-4):
            path = nifti(tmp_path / "scan.nii", "q", affine, quatern_d=digit)
            np.testing.assert_allclose(read_volume(path).affine.numpy(), affine, atol=1e-5)

    @pytest.mark.parametrize("names", [("scan.nii", "scan.nii.gz"), ("scan.nii.gz", "scan.nii")])
    def test_compressed_other_than_the_name_says(self, names: tuple[str, str], tmp_path: Path) -> None:
        path = nifti(tmp_path / names[0]).rename(tmp_path / names[1])
        with pytest.warns(UserWarning, match="compressed, other than its name says"):
            volume = read_volume(path)
        np.testing.assert_array_equal(volume.numpy()[0], VALUES)

    @pytest.mark.parametrize(("unit", "factor"), [(1, 1e-3), (3, 1e3)])
    @pytest.mark.parametrize("forms", ["s", "q", "sq"])
    def test_lengths_in_other_units(self, forms: str, unit: int, factor: float, tmp_path: Path) -> None:
        path = nifti(tmp_path / "scan.nii", forms, np.diag([factor] * 3 + [1]) @ AFFINE, xyzt_units=unit)
        check(path)
        np.testing.assert_allclose(sitk.ReadImage(str(path)).GetSpacing(), [1.5, 1.25, 3], atol=1e-5)
        np.testing.assert_array_equal(as_volume(nib.load(path)).affine.numpy(), read_volume(path).affine.numpy())

    def test_slope_and_intercept(self, tmp_path: Path) -> None:
        path = nifti(tmp_path / "scan.nii", scl_slope=0.5, scl_inter=-24)
        np.testing.assert_array_equal(read_volume(path).numpy()[0], VALUES * 0.5 - 24)
        np.testing.assert_array_equal(as_volume(nib.load(path)).numpy()[0], VALUES * 0.5 - 24)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_forms_that_part_toward_the_end_of_the_longest_axis(self, axis: int, tmp_path: Path) -> None:
        """0.3 degrees between sform and qform: 0.01 mm at 3 voxels, 1.6 mm at 300."""
        turn = np.eye(4)
        turned = ((0, 1), (1, 2), (2, 0))[axis]
        small = np.radians(0.3)
        turn[np.ix_(turned, turned)] = [[np.cos(small), -np.sin(small)], [np.sin(small), np.cos(small)]]
        for length in (3, 300):
            shape = [3, 3, 3]
            shape[axis] = length
            image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), np.eye(4))
            image.set_sform(np.eye(4), 1)
            image.set_qform(turn, 1)
            nib.save(image, tmp_path / "scan.nii")
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                read_volume(tmp_path / "scan.nii")
            assert any("sform and qform disagree by up to 1.6 mm" in str(w.message) for w in said) is (length == 300)


class TestDataFiles:
    def slices(self, folder: Path) -> list[str]:
        """A file of raw voxels per slice."""
        names = [f"s{k:02d}.raw" for k in range(1, 1 + SHAPE[2])]
        for k, name in enumerate(names):
            (folder / name).write_bytes(VALUES[:, :, k].tobytes(order="F"))
        return names

    @pytest.mark.parametrize("many", ["LIST\n{names}\n", "LIST 2D\n{names}", "s%02d.raw 1 4 1", "s%02d.raw"])
    @pytest.mark.parametrize(("kind", "field"), [("mha", "ElementDataFile"), ("nrrd", "data file")])
    def test_several_files(self, kind: str, field: str, many: str, tmp_path: Path) -> None:
        names = self.slices(tmp_path)
        if kind == "nrrd":  # which counts without a D and needs all numbers
            many = {"LIST 2D\n{names}": "LIST 2\n{names}", "s%02d.raw": "s%02d.raw 1 4 1 2\n"}.get(many, f"{many}\n")
        path = write(tmp_path, kind, {field: many.format(names="\n".join(names))}, b"")
        check(path)
        assert volume_files(path) == [path, *(tmp_path / name for name in names)]

    def test_one_file_beside_or_below_its_header(self, tmp_path: Path) -> None:
        (tmp_path / "all.raw").write_bytes(b"head" + RAW)
        path = mha(tmp_path, b"", ElementDataFile="all.raw", HeaderSize="4")
        check(path)
        assert volume_files(path) == [path, tmp_path / "all.raw"]
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "x.raw").write_bytes(RAW)
        check(mha(tmp_path, b"", ElementDataFile="raw/x.raw"))
        check(nrrd(tmp_path, changes={"data file": "./raw/x.raw\n"}))

    @pytest.mark.parametrize(
        "name", ["/etc/hostname", "../other/x.raw", "sub/../../x.raw", "C:\\x.raw", "..\\x.raw", "scan.{kind}", ""]
    )
    @pytest.mark.parametrize(("kind", "field"), [("mha", "ElementDataFile"), ("nrrd", "data file")])
    def test_no_file_elsewhere(self, kind: str, field: str, name: str, tmp_path: Path) -> None:
        folder = tmp_path / "here"
        (tmp_path / "other").mkdir()
        folder.mkdir()
        for place in (tmp_path / "other" / "x.raw", tmp_path / "x.raw"):
            place.write_bytes(RAW)
        name = name.format(kind=kind)
        for named in (name, f"LIST\n{name}\n{name}\n{name}\n{name}"):
            path = write(folder, kind, {field: named}, b"")
            with pytest.raises(InputError, match=r"beside the header|names itself|names 0 data files|has no end"):
                read_volume(path)
            assert volume_files(path) == [path]

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"its data are missing: there is no file \S+scan\.raw"):
            read_volume(mha(tmp_path, b"", ElementDataFile="scan.raw"))
