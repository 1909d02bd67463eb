"""NRRD (.nrrd): a header of `field: value` lines that ends with an empty one, voxels behind it or in files beside it.

The definition is that of teem (http://teem.sourceforge.net/nrrd/format.html). A *domain axis* is one that runs through
space: it has a vector in `space directions`, where these are given. Other axes must have one sample here.
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

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        *("longlong", "long long", "long long int", "signed long long", "signed long long int"),
        *("int64", "int64_t"),
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw",
    "txt": "text",
    "text": "text",
    "ascii": "text",
    "hex": "hex",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
}
# What takes a space to RAS, by its name without hyphens; the others say nothing of the patient.
_SPACES = {
    "rightanteriorsuperior": (1, 1, 1),
    "ras": (1, 1, 1),
    "leftanteriorsuperior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "leftposteriorsuperior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_OTHER_SPACES = {"", "scannerxyz", "3drighthanded", "3dlefthanded"}
_KNOWN = {
    *("dimension", "type", "block size", "blocksize", "encoding", "endian", "content", "min", "max", "old min"),
    *("oldmin", "old max", "oldmax", "data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"),
    *(
        "number",
        "sample units",
        "sampleunits",
        "sizes",
        "spacings",
        "thicknesses",
        "axis mins",
        "axismins",
        "axis maxs",
    ),
    *("axismaxs", "centers", "centerings", "labels", "units", "kinds", "space", "space dimension", "space units"),
    *("space origin", "space directions", "measurement frame"),
}
_MILLIMETERS = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "???"}
_SPATIAL = {"domain", "space", "none", "???"}  # kinds
_LONGEST_HEADER = 1 << 20


def read_header(path: Path) -> Stored:
    """What the header of an .nrrd file says.

    Raises:
        InputError: it is no NRRD, lacks what places or sizes the voxels, has a field twice or one that teem does not
            know or that cannot be read, or names data files that do not lie beside it.
    """
    fields, end, listed = _fields(path)
    (count,) = integers(_required(fields, "dimension", path), 1, path, "dimension")
    if not 1 <= count <= 16:
        raise InputError(f"{path}: its header gives {count} dimensions, which are none.")
    sizes = integers(_required(fields, "sizes", path), count, path, "sizes")
    if min(sizes) < 1:
        raise InputError(f"{path}: its header gives sizes of {' x '.join(map(str, sizes))}, which is no volume.")
    kind = _required(fields, "type", path).lower()
    code = next((code for code, names in _TYPES.items() if kind in names), None)
    if code is None:
        raise InputError(f"{path}: values of type {kind!r}, which cannot be read.")
    encoding = _ENCODINGS.get(_required(fields, "encoding", path).lower())
    if encoding is None:
        raise InputError(f"{path}: its header gives the encoding {fields['encoding']!r}, which NRRD does not know.")
    order = fields.get("endian", "little" if code[1] == "1" or encoding == "text" else "").lower()
    if order not in ("little", "big"):
        raise InputError(f"{path}: its header gives the order of bytes (endian) as {order!r}; it is little or big.")
    _check_units(fields, path)
    directions = _vectors(fields, count, path) if "space directions" in fields else None
    domain = [axis for axis in range(count) if directions is None or directions[axis] is not None]
    # Components run fastest; axes of one sample beside space are none.
    components = 1
    if directions is None and re.match(r"\S*(vector|color)\b", fields.get("kinds", "").lower()):
        domain = domain[1:]
    _require_spatial(fields, sizes, domain, path)
    if domain and domain[0] > 0:
        components = math.prod(sizes[: domain[0]])
        sizes = sizes[domain[0] :]
    shape = tuple(sizes)
    kept = [axis - domain[0] for axis in domain]
    if kept != list(range(len(kept))):
        raise InputError(f"{path}: its axes through space do not follow each other, and such voxels cannot be read.")
    affine, remarks = _geometry(fields, directions, domain, path)
    skip, parts = _parts(fields, (components, *shape) if components > 1 else shape, encoding, path, end, listed)
    return checked(
        Stored(
            path=path,
            shape=shape,
            dtype=np.dtype(f"{'<' if order == 'little' else '>'}{code}"),
            affine=affine,
            parts=parts,
            components=components,
            encoding=encoding,
            skip=skip,
            remarks=tuple(remarks),
        )
    )


def _fields(path: Path) -> tuple[dict[str, str], int, list[str]]:
    """The fields of the header, the byte after it, and the lines that follow `data file: LIST`."""
    with path.open("rb") as stream:
        start = stream.read(_LONGEST_HEADER)
    if not re.match(rb"NRRD000[1-5]\r?\n", start):
        raise InputError(f"{path} cannot be read: its content is not NRRD.")
    fields: dict[str, str] = {}
    listed: list[str] = []
    end = start.index(b"\n") + 1
    while end < len(start):
        line = start[end : start.find(b"\n", end) + 1 or len(start)]
        end += len(line)
        text = line.decode("utf-8", "surrogateescape").rstrip()
        if not text:
            break
        if "\0" in text:
            raise InputError(f"{path}: its header holds NUL bytes.")
        if text.startswith("#"):
            continue
        name, colon, value = text.partition(":")
        if value.startswith("="):  # a key and a value of the user's own
            continue
        name = name.strip().lower()
        if not colon or name not in _KNOWN:
            raise InputError(f"{path}: its header holds a line that NRRD does not know: {text[:60]!r}.")
        name = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(name, name)
        if name in fields:
            raise InputError(f"{path}: its header gives '{name}' twice.")
        fields[name] = value.strip()
        if name == "data file" and fields[name].split()[:1] == ["LIST"]:
            listed = [
                name.strip() for name in start[end:].decode("utf-8", "surrogateescape").splitlines() if name.strip()
            ]
            end = len(start)
    else:
        if "data file" not in fields:
            raise InputError(f"{path}: its header has no end: no empty line and no voxels follow it.")
    return fields, end, listed


def _required(fields: dict[str, str], name: str, path: Path) -> str:
    if name not in fields:
        raise InputError(f"{path}: its header has no '{name}'.")
    return fields[name]


def _check_units(fields: dict[str, str], path: Path) -> None:
    for name in ("space units", "units"):
        quoted = re.findall(r'"([^"]*)"', fields.get(name, ""))
        if other := [unit for unit in quoted if unit.strip().lower() not in _MILLIMETERS]:
            raise InputError(
                f"{path}: its header gives lengths in {', '.join(dict.fromkeys(other))} ({name}), which some programs "
                "heed and others take for mm.",
                "Give them in mm.",
            )


def _require_spatial(fields: dict[str, str], sizes: list[int], domain: list[int], path: Path) -> None:
    """Refuse what denies that axes are of space: their kinds, or a second statement of their voxel size."""
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != len(sizes):
        raise InputError(f"{path}: its header gives {len(kinds)} kinds for {len(sizes)} axes.")
    for axis in domain:
        if kinds and sizes[axis] > 1 and kinds[axis] not in _SPATIAL:
            raise InputError(
                f"{path}: its header calls axis {axis + 1} '{kinds[axis][:40]}', which is no axis of space."
            )
    spacings = fields.get("spacings", "").lower().split()
    if "space directions" in fields and any(spacings[axis : axis + 1] not in ([], ["nan"]) for axis in domain):
        raise InputError(f"{path}: its header gives both space directions and spacings; NRRD allows one of them.")


def _vectors(fields: dict[str, str], count: int, path: Path) -> list[list[float] | None]:
    """One vector or None for each axis, from "none (1,0,0) (0,1,0) (0,0,1)"."""
    words = re.findall(r"\([^()]*\)|[^\s()]+", fields["space directions"])
    if left := re.sub(r"\([^()]*\)|[^\s()]+", "", fields["space directions"]).strip():
        raise InputError(f"{path}: its header gives space directions with a stray {left[:20]!r}.")
    if len(words) != count:
        raise InputError(f"{path}: its header gives {len(words)} space directions for {count} axes.")
    return [None if word.lower() == "none" else _vector(word, fields, path, "space directions") for word in words]


def _vector(text: str, fields: dict[str, str], path: Path, what: str) -> list[float]:
    """Three numbers, the third 0 where the space has two dimensions."""
    flat = "space" not in fields and fields.get("space dimension") == "2"
    if not (text.startswith("(") and text.endswith(")")):
        raise InputError(f"{path}: its header gives {what} as {text[:60]!r}; a vector such as (1,0,0) is needed.")
    return [*numbers(text[1:-1].replace(",", " "), 2 if flat else 3, path, what), 0.0][:3]


def _geometry(
    fields: dict[str, str], directions: list[list[float] | None] | None, domain: list[int], path: Path
) -> tuple[npt.NDArray[np.float64], list[str]]:
    remarks = []
    affine = np.eye(4)
    used = min(len(domain), 3)
    if directions is not None:
        if not used:
            raise InputError(f"{path}: its header gives no space directions, and so no voxel size.", "Add them, in mm.")
        affine[:3, :used] = np.array([directions[axis] for axis in domain[:3]]).T
    elif "spacings" in fields:
        words = fields["spacings"].split()
        spacings = [words[axis] for axis in domain[:3] if axis < len(words)]
        affine[:used, :used] = np.diag(numbers(" ".join(spacings), used, path, "spacings"))
        remarks.append("the header gives no space directions: the axes are taken for those of its space")
    else:
        raise InputError(f"{path}: its header gives no voxel size (space directions or spacings).", "Add it, in mm.")
    if "space origin" in fields:
        affine[:3, 3] = _vector(fields["space origin"], fields, path, "space origin")
    else:
        remarks.append("the header gives no space origin: the first voxel is taken to lie at the origin")
    space = re.sub(r"[- ]", "", fields.get("space", "").lower())
    if space not in _SPACES and space not in _OTHER_SPACES:
        raise InputError(
            f"{path}: its header names a space of three axes that NRRD does not know: {fields['space']!r}."
        )
    if space not in _SPACES:
        remarks = [unknown_orientation("the header names no anatomical space")]
    return np.diag([*_SPACES.get(space, (-1, -1, 1)), 1.0]) @ affine, remarks


def _parts(
    fields: dict[str, str], sizes: tuple[int, ...], encoding: Encoding, path: Path, end: int, listed: list[str]
) -> tuple[int, tuple[Part, ...]]:
    """Bytes to leave out of each decoded part, and the parts."""
    (lines,) = integers(fields.get("line skip", "0"), 1, path, "line skip")
    (skip,) = integers(fields.get("byte skip", "0"), 1, path, "byte skip")
    if lines < 0 or skip < -1 or (skip == -1 and (lines or encoding != "raw")):
        raise InputError(f"{path}: its header leaves out {lines} lines and {skip} bytes before such data.")
    if encoding in ("text", "hex") and skip:
        raise InputError(f"{path}: its header leaves out {skip} bytes of text.")
    named = fields.get("data file")
    words = named.split() if named else []
    start, files = 0, []
    if named is None:
        start, files = end, [path]
    elif words[:1] == ["LIST"]:
        deep = integers(words[1], 1, path, "LIST")[0] if len(words) > 1 else len(sizes) - 1
        _check_count(len(listed), sizes, deep, path)
        files = [beside(path, name) for name in listed]
    elif "%" in named:
        bounds = integers(" ".join(words[1:]), None, path, "the numbers of its data files")
        if len(bounds) not in (3, 4) or bounds[2] == 0:
            raise InputError(
                f"{path}: its header numbers its data files by {named!r}; first, last and step are needed."
            )
        chosen = range(bounds[0], bounds[1] + (1 if bounds[2] > 0 else -1), bounds[2])
        _check_count(len(chosen), sizes, bounds[3] if len(bounds) > 3 else len(sizes) - 1, path)
        files = numbered_files(path, words[0], chosen)
    else:
        files = [beside(path, named)]
    if skip == -1:
        start, skip = -1, 0
    return skip, tuple(Part(file, start, lines=lines) for file in files)


def _check_count(files: int, sizes: tuple[int, ...], deep: int, path: Path) -> None:
    """Whether `files` files of `deep` axes each hold what the sizes say; of all axes, they share the slowest one."""
    fits = 1 <= deep < len(sizes) and files == math.prod(sizes[deep:])
    shares = deep == len(sizes) and files > 0 and sizes[-1] % files == 0
    if not fits and not shares:
        raise InputError(f"{path}: its header names {files} data files, which do not fit its sizes.")
