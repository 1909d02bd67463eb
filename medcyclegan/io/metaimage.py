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
from medcyclegan.io.nifti import unknown_orientation
from medcyclegan.io.stored import Encoding, Part, Stored, beside, checked, integers, numbered_files, numbers

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
_LONGEST_HEADER = 1 << 20
# A field's name is anything that can be printed: ITK adds what other formats have, such as `dim[0]` or `0008|0060`.
_LINE = re.compile(r"\s*([ -9;<>-~]+?)\s*[=:]\s*(.*?)\s*")


def read_header(path: Path) -> Stored:
    """What the header of a .mha or .mhd file says.

    Raises:
        InputError: it is no MetaImage, lacks a field that places or sizes the voxels, has one twice or one that cannot
            be read, or names data files that do not lie beside it.
    """
    fields, end, listed = _fields(path)
    if fields.get("ObjectType", "Image") != "Image":
        raise InputError(f"{path}: it holds {fields['ObjectType']!r}, not an image.")
    (count,) = integers(_required(fields, "NDims", path), 1, path, "NDims")
    if not 1 <= count <= 7:
        raise InputError(f"{path}: its header gives {count} dimensions (NDims), which are none.")
    shape = tuple(integers(_required(fields, "DimSize", path), count, path, "DimSize"))
    (components,) = integers(fields.get("ElementNumberOfChannels", "1"), 1, path, "ElementNumberOfChannels")
    kind = _required(fields, "ElementType", path).removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise InputError(f"{path}: values of type {kind!r} (ElementType), which cannot be read.")
    order = ">" if _true(fields, "BinaryDataByteOrderMSB", path) else "<"
    scale = [
        numbers(fields.get(f"ElementToIntensityFunction{name}", neutral), 1, path, name.lower())[0]
        for name, neutral in (("Slope", "1"), ("Offset", "0"))
    ]
    if scale != [1, 0]:
        raise InputError(
            f"{path}: its header scales the voxels (ElementToIntensityFunctionSlope {scale[0]:g}, "
            f"ElementToIntensityFunctionOffset {scale[1]:g}), which some programs heed and others do not.",
            "Store the values themselves.",
        )
    if fields.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise InputError(
            f"{path}: its header gives lengths in {fields['DistanceUnits']!r} (DistanceUnits), which some programs "
            "heed and others take for mm.",
            "Give them in mm.",
        )
    affine, remarks = _geometry(fields, count, path)
    packed, text = _true(fields, "CompressedData", path), not _true(fields, "BinaryData", path, default=True)
    encoding: Encoding = "zlib" if packed else "text" if text else "raw"
    if packed and text:
        raise InputError(f"{path}: its header says that the voxels are compressed and text, which excludes itself.")
    return checked(
        Stored(
            path=path,
            shape=shape,
            dtype=np.dtype(f"{order}{_TYPES[kind]}"),
            affine=affine,
            parts=_parts(fields, shape, encoding, path, end, listed),
            components=components,
            encoding=encoding,
            remarks=tuple(remarks),
        )
    )


def _fields(path: Path) -> tuple[dict[str, str], int, list[str]]:
    """The fields of the header, the byte after it, and the lines that follow a LIST."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        start = stream.read(_LONGEST_HEADER)
    end = 0
    while "ElementDataFile" not in fields and end < len(start):
        line = start[end : start.find(b"\n", end) + 1 or len(start)]
        text = line.decode("utf-8", "surrogateescape")
        found = _LINE.fullmatch(text)
        if not found and text.strip():
            break
        end += len(line)
        if not found:
            continue
        name, value = found.groups()
        name = _SAME.get(name, name)
        if name in fields and fields[name] != value:
            raise InputError(f"{path}: its header gives {name} twice, as {fields[name]!r} and as {value!r}.")
        fields[name] = value
    if not fields:
        raise InputError(f"{path} cannot be read: its content is not MetaImage.")
    if "ElementDataFile" not in fields:
        raise InputError(
            f"{path}: its header breaks off or is damaged at byte {end}: no ElementDataFile says where the voxels lie."
        )
    if "\0" in "".join(fields.values()):
        raise InputError(f"{path}: its header holds NUL bytes.")
    listed = [line.strip() for line in start[end:].decode("utf-8", "surrogateescape").splitlines() if line.strip()]
    return fields, end, listed if fields["ElementDataFile"].split()[:1] == ["LIST"] else []


def _required(fields: dict[str, str], name: str, path: Path) -> str:
    if name not in fields:
        raise InputError(f"{path}: its header has no {name}.")
    return fields[name]


def _true(fields: dict[str, str], name: str, path: Path, *, default: bool = False) -> bool:
    value = fields.get(name, str(default)).lower()
    if value not in ("true", "false", "1", "0"):
        raise InputError(f"{path}: its header gives {name} as {fields[name]!r}; it is True or False.")
    return value in ("true", "1")


def _geometry(fields: dict[str, str], count: int, path: Path) -> tuple[npt.NDArray[np.float64], list[str]]:
    """x_LPS = offset + sum of index_i * spacing_i * axis_i; the matrix lists one axis after the other."""
    remarks = []
    spacing = fields.get("ElementSpacing", fields.get("ElementSize"))
    if spacing is None:
        raise InputError(f"{path}: its header gives no voxel size (ElementSpacing).", "Add it, in mm.")
    sizes = np.array(numbers(spacing, count, path, "ElementSpacing"))
    if sizes.min() < 0:
        raise InputError(f"{path}: its header gives a voxel size of {spacing[:60]} (ElementSpacing), which cannot be.")
    if "TransformMatrix" in fields:
        axes = np.array(numbers(fields["TransformMatrix"], count * count, path, "TransformMatrix"))
    else:
        axes = np.eye(count).ravel()
        remarks.append(unknown_orientation("the header gives no TransformMatrix"))
    if "Offset" in fields:
        offset = np.array(numbers(fields["Offset"], count, path, "Offset"))
    else:
        offset = np.zeros(count)
        remarks.append("the header gives no Offset: the first voxel is taken to lie at the origin")
    used = min(count, 3)
    affine = np.eye(4)
    with np.errstate(over="ignore", invalid="ignore"):
        affine[:used, :used] = (axes.reshape(count, count).T * sizes)[:used, :used]
    affine[:used, 3] = offset[:used]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, remarks


def _parts(
    fields: dict[str, str], shape: tuple[int, ...], encoding: Encoding, path: Path, end: int, listed: list[str]
) -> tuple[Part, ...]:
    named = fields["ElementDataFile"]
    (start,) = integers(fields.get("HeaderSize", "0"), 1, path, "HeaderSize")
    length = None
    if "CompressedDataSize" in fields:
        (length,) = integers(fields["CompressedDataSize"], 1, path, "CompressedDataSize")
        if encoding != "zlib" and length > 0:
            raise InputError(f"{path}: its header gives a CompressedDataSize, and CompressedData is not True.")
        length = length if length > 0 else None
    words = named.split()
    if words[:1] == ["LIST"]:
        deep = integers(words[1].removesuffix("D"), 1, path, "LIST")[0] if len(words) > 1 else len(shape) - 1
        files = [beside(path, name) for name in listed]
        count = math.prod(shape[deep:]) if 0 < deep <= len(shape) else 0
    elif "%" in named:
        bounds = integers(" ".join(words[1:]), None, path, "the numbers of its data files")
        first = bounds[0] if bounds else 1
        step = bounds[2] if len(bounds) > 2 else 1
        count = shape[-1]
        last = bounds[1] if len(bounds) > 1 else first + (count - 1) * step
        if step < 1 or len(bounds) > 3 or len(range(first, last + 1, step)) != count:
            raise InputError(f"{path}: its header numbers its data files by {named!r}, which is not {count} files.")
        files = numbered_files(path, words[0], range(first, last + 1, step))
    else:
        local = named.upper() == "LOCAL"
        if start < -1 or (start > 0 and local) or (start != 0 and encoding != "raw"):
            raise InputError(f"{path}: its header leaves out {start} bytes before such data (HeaderSize).")
        return (Part(path if local else beside(path, named), start or (end if local else 0), length),)
    if len(files) != count:
        raise InputError(f"{path}: its header names {len(files)} data files, and its shape needs {count}.")
    if encoding != "raw" or start > 0 or start < -1:
        raise InputError(f"{path}: compressed or skipped data in several files cannot be read.")
    return tuple(Part(file, start) for file in files)
