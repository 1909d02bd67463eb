"""MetaImage (.mha, .mhd): a header of `Field = value` lines, voxels behind it or in files beside it.

The fields are those of MetaIO, the library that ITK reads them with: `DimSize`, `ElementSpacing`, `Offset` and
`TransformMatrix` place the voxels in LPS millimeters, `ElementType` says what they are, `ElementDataFile`, which comes
last, where they lie: LOCAL, a file, a numbered pattern, or LIST with a file per line.

MetaIO takes 0 or 1 for what is missing or unreadable, and looks at no checksum; here such a header is refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medcyclegan.errors import InputError
from medcyclegan.io.grid import RAS_FROM_LPS
from medcyclegan.io.nifti import unknown_orientation
from medcyclegan.io.stored import Encoding, Part, StoredVolume, checked
from medcyclegan.io.text_header import TextHeader

# Sizes are MetaIO's own: its "long" has 4 bytes on every machine.
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# Other names of the same field.
_SAME = {
    "Position": "Offset",
    "Origin": "Offset",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
# Fields that scale the values -> what leaves them as they are.
_SCALE = {"ElementToIntensityFunctionSlope": "1", "ElementToIntensityFunctionOffset": "0"}
# A field's name is anything that can be printed: ITK adds what other formats have, such as `dim[0]` or `0008|0060`.
_LINE = re.compile(r"\s*([ -9;<>-~]+?)\s*[=:]\s*(.*?)\s*")


def read_header(path: Path) -> StoredVolume:
    """The header of a .mha or .mhd file.

    Raises:
        InputError: it is no MetaImage, lacks a field that places or sizes the voxels, has one twice or one that cannot
            be read, or names data files that do not lie beside it.
    """
    header = _parsed(path)
    if (kind := header.text("ObjectType", "Image")) != "Image":
        raise InputError(f"{path}: it holds {kind!r}, not an image.")
    count = header.integer("NDims")
    if not 1 <= count <= 7:
        raise header.refusal(f"gives {count} dimensions (NDims), which are none")
    shape = tuple(header.integers("DimSize", count))
    components = header.integer("ElementNumberOfChannels", "1")
    kind = header.text("ElementType").removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise InputError(f"{path}: values of type {kind!r} (ElementType), which cannot be read.")
    slope, intercept = (header.numbers(name, 1, neutral)[0] for name, neutral in _SCALE.items())
    if (slope, intercept) != (1, 0):
        raise header.refusal(
            f"scales the voxels (ElementToIntensityFunctionSlope {slope:g}, ElementToIntensityFunctionOffset "
            f"{intercept:g}), which some programs heed and others do not",
            "Store the values themselves.",
        )
    if (unit := header.text("DistanceUnits", "mm")) not in ("mm", "?"):
        raise header.refusal(
            f"gives lengths in {unit!r} (DistanceUnits), which some programs heed and others take for mm",
            "Give them in mm.",
        )
    packed, text = _true(header, "CompressedData"), not _true(header, "BinaryData", default="True")
    if packed and text:
        raise header.refusal("says that the voxels are compressed and text, which excludes itself")
    encoding: Encoding = "zlib" if packed else "text" if text else "raw"
    affine, remarks = _geometry(header, count)
    return checked(
        StoredVolume(
            path=path,
            shape=shape,
            dtype=np.dtype(_TYPES[kind]).newbyteorder(">" if _true(header, "BinaryDataByteOrderMSB") else "<"),
            affine=affine,
            parts=_parts(header, shape, encoding),
            components=components,
            encoding=encoding,
            remarks=tuple(remarks),
        )
    )


def _parsed(path: Path) -> TextHeader:
    """The fields up to ElementDataFile, and the names that follow it where it is a LIST."""
    header = TextHeader(path)
    fields, lines = header.fields, header.lines()
    sound = 0  # the byte up to which the header is one
    for line in lines:
        if found := _LINE.fullmatch(line):
            name, value = _SAME.get(found[1], found[1]), found[2]
            if fields.get(name, value) != value:
                raise header.refusal(f"gives {name} twice, as {fields[name]!r} and as {value!r}")
            fields[name] = value
            if name == "ElementDataFile":
                break
        elif line.strip():
            break
        sound = header.end
    if not fields:
        raise InputError(f"{path} cannot be read: its content is not MetaImage.")
    if "ElementDataFile" not in fields:
        raise header.refusal(f"breaks off or is damaged at byte {sound}: no ElementDataFile says where the voxels lie")
    if "\0" in "".join(fields.values()):
        raise header.refusal("holds NUL bytes")
    if fields["ElementDataFile"].split()[:1] == ["LIST"]:
        header.listed = [line.strip() for line in lines if line.strip()]
    return header


def _true(header: TextHeader, name: str, default: str = "False") -> bool:
    value = header.text(name, default)
    if value.lower() not in ("true", "false", "1", "0"):
        raise header.refusal(f"gives {name} as {value!r}; it is True or False")
    return value.lower() in ("true", "1")


def _geometry(header: TextHeader, count: int) -> tuple[npt.NDArray[np.float64], list[str]]:
    """x_LPS = offset + sum of index_i * spacing_i * axis_i; the matrix lists one axis after the other."""
    remarks = []
    if not {"ElementSpacing", "ElementSize"} & header.fields.keys():
        raise header.refusal("gives no voxel size (ElementSpacing)", "Add it, in mm.")
    spacing = header.text("ElementSpacing", header.fields.get("ElementSize"))
    sizes = np.array(header.numbers_of(spacing, count, "ElementSpacing"))
    if sizes.min() < 0:
        raise header.refusal(f"gives a voxel size of {spacing[:60]} (ElementSpacing), which cannot be")
    if "TransformMatrix" not in header.fields:
        remarks.append(unknown_orientation("the header gives no TransformMatrix"))
    if "Offset" not in header.fields:
        remarks.append("the header gives no Offset: the first voxel is taken to lie at the origin")
    straight = " ".join("1" if i == j else "0" for i in range(count) for j in range(count))
    axes = np.array(header.numbers("TransformMatrix", count * count, straight)).reshape(count, count).T
    offset = header.numbers("Offset", count, " ".join("0" * count))
    used = min(count, 3)
    affine = np.eye(4)
    with np.errstate(over="ignore", invalid="ignore"):
        affine[:used, :used] = (axes * sizes)[:used, :used]
    affine[:used, 3] = offset[:used]
    return RAS_FROM_LPS @ affine, remarks


def _parts(header: TextHeader, shape: tuple[int, ...], encoding: Encoding) -> tuple[Part, ...]:
    named = header.text("ElementDataFile")
    words = named.split()
    start = header.integer("HeaderSize", "0")
    length = header.integer("CompressedDataSize", "0")
    if encoding != "zlib" and length > 0:
        raise header.refusal("gives a CompressedDataSize, and CompressedData is not True")
    if words[:1] == ["LIST"]:
        deep = header.integers_of(words[1].removesuffix("D"), 1, "LIST")[0] if len(words) > 1 else len(shape) - 1
        files = [header.beside(name) for name in header.listed]
        count = math.prod(shape[deep:]) if 0 < deep <= len(shape) else 0
    elif "%" in named:
        count = shape[-1]
        bounds = header.integers_of(" ".join(words[1:]), None, "the numbers of its data files")
        first, *_ = bounds or [1]
        step = bounds[2] if len(bounds) > 2 else 1
        last = bounds[1] if len(bounds) > 1 else first + (count - 1) * step
        if step < 1 or len(bounds) > 3 or len(range(first, last + 1, step)) != count:
            raise header.refusal(f"numbers its data files by {named!r}, which is not {count} files")
        files = header.numbered_files(words[0], range(first, last + 1, step))
    else:
        local = named.upper() == "LOCAL"
        if start < -1 or (start > 0 and local) or (start != 0 and encoding != "raw"):
            raise header.refusal(f"leaves out {start} bytes before such data (HeaderSize)")
        file = header.path if local else header.beside(named)
        return (Part(file, start or (header.end if local else 0), length if length > 0 else None),)
    if len(files) != count:
        raise header.refusal(f"names {len(files)} data files, and its shape needs {count}")
    if encoding != "raw" or start > 0 or start < -1:
        raise InputError(f"{header.path}: compressed or skipped data in several files cannot be read.")
    return tuple(Part(file, start) for file in files)
