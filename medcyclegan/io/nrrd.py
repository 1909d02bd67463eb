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
from medcyclegan.io.stored import Encoding, Part, StoredVolume, checked
from medcyclegan.io.text_header import TextHeader

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
# Names of fields, and other names of the same.
_KNOWN = {
    *("dimension", "type", "block size", "encoding", "endian", "content", "min", "max", "old min", "old max"),
    *("data file", "line skip", "byte skip", "number", "sample units", "sizes", "spacings", "thicknesses"),
    *("axis mins", "axis maxs", "centers", "labels", "units", "kinds", "space", "space dimension", "space units"),
    *("space origin", "space directions", "measurement frame"),
}
_SAME = {name.replace(" ", ""): name for name in _KNOWN if not name.startswith("space ")} | {"centerings": "centers"}
_MILLIMETERS = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "???"}
_SPATIAL = {"domain", "space", "none", "???"}  # kinds


def read_header(path: Path) -> StoredVolume:
    """The header of an .nrrd file.

    Raises:
        InputError: it is no NRRD, lacks what places or sizes the voxels, has a field twice or one that teem does not
            know or that cannot be read, or names data files that do not lie beside it.
    """
    header = _parsed(path)
    count = header.integer("dimension")
    if not 1 <= count <= 16:
        raise header.refusal(f"gives {count} dimensions, which are none")
    sizes = header.integers("sizes", count)
    if min(sizes) < 1:
        raise header.refusal(f"gives sizes of {' x '.join(map(str, sizes))}, which is no volume")
    kind = header.text("type").lower()
    code = next((code for code, names in _TYPES.items() if kind in names), None)
    if code is None:
        raise InputError(f"{path}: values of type {kind!r}, which cannot be read.")
    encoding = _ENCODINGS.get(header.text("encoding").lower())
    if encoding is None:
        raise header.refusal(f"gives the encoding {header.text('encoding')!r}, which NRRD does not know")
    order = header.text("endian", "little" if code[1] == "1" or encoding == "text" else "").lower()
    if order not in ("little", "big"):
        raise header.refusal(f"gives the order of bytes (endian) as {order!r}; it is little or big")
    for name in ("space units", "units"):
        units = re.findall(r'"([^"]*)"', header.text(name, ""))
        if other := [unit for unit in units if unit.strip().lower() not in _MILLIMETERS]:
            raise header.refusal(
                f"gives lengths in {', '.join(dict.fromkeys(other))} ({name}), which some programs heed and others "
                "take for mm",
                "Give them in mm.",
            )
    directions = _directions(header, count)
    domain = [axis for axis in range(count) if directions is None or directions[axis] is not None]
    if directions is None and re.match(r"\S*(vector|color)\b", header.text("kinds", "").lower()):
        domain = domain[1:]
    _require_spatial(header, sizes, domain)
    # Components run fastest; axes of one sample beside space are none.
    before = domain[0] if domain else 0
    components, shape = math.prod(sizes[:before]), tuple(sizes[before:])
    if [axis - before for axis in domain] != list(range(len(domain))):
        raise InputError(f"{path}: its axes through space do not follow each other, and such voxels cannot be read.")
    affine, remarks = _geometry(header, directions, domain)
    skip, parts = _parts(header, (components, *shape) if components > 1 else shape, encoding)
    return checked(
        StoredVolume(
            path=path,
            shape=shape,
            dtype=np.dtype(code).newbyteorder("<" if order == "little" else ">"),
            affine=affine,
            parts=parts,
            components=components,
            encoding=encoding,
            skip=skip,
            remarks=tuple(remarks),
        )
    )


def _parsed(path: Path) -> TextHeader:
    """The fields up to an empty line, or to the names that follow `data file: LIST`."""
    header = TextHeader(path)
    fields, lines = header.fields, header.lines()
    if not re.fullmatch(r"NRRD000[1-5]\r?\n", next(lines, "")):
        raise InputError(f"{path} cannot be read: its content is not NRRD.")
    for line in map(str.rstrip, lines):
        if not line:
            break
        if "\0" in line:
            raise header.refusal("holds NUL bytes")
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):  # a comment, or a key and a value of the user's own
            continue
        name = name.strip().lower()
        name = _SAME.get(name, name)
        if not colon or name not in _KNOWN:
            raise header.refusal(f"holds a line that NRRD does not know: {line[:60]!r}")
        if name in fields:
            raise header.refusal(f"gives '{name}' twice")
        fields[name] = value.strip()
        if name == "data file" and fields[name].split()[:1] == ["LIST"]:
            header.listed = [line.strip() for line in lines if line.strip()]
    else:
        if "data file" not in fields:
            raise header.refusal("has no end: no empty line and no voxels follow it")
    return header


def _require_spatial(header: TextHeader, sizes: list[int], domain: list[int]) -> None:
    """Refuse what denies that axes are of space: their kinds, or a second statement of their voxel size."""
    kinds = header.text("kinds", "").lower().split()
    if kinds and len(kinds) != len(sizes):
        raise header.refusal(f"gives {len(kinds)} kinds for {len(sizes)} axes")
    for axis in domain:
        if kinds and sizes[axis] > 1 and kinds[axis] not in _SPATIAL:
            raise header.refusal(f"calls axis {axis + 1} '{kinds[axis][:40]}', which is no axis of space")
    spacings = header.text("spacings", "").lower().split()
    given_twice = any(spacings[axis : axis + 1] not in ([], ["nan"]) for axis in domain)
    if "space directions" in header.fields and given_twice:
        raise header.refusal("gives both space directions and spacings; NRRD allows one of them")


def _directions(header: TextHeader, count: int) -> list[list[float] | None] | None:
    """One vector or None for each axis, from "none (1,0,0) (0,1,0) (0,0,1)"; None where the field is missing."""
    name = "space directions"
    if name not in header.fields:
        return None
    words = re.findall(r"\([^()]*\)|[^\s()]+", header.text(name))
    if left := re.sub(r"\([^()]*\)|[^\s()]+", "", header.text(name)).strip():
        raise header.refusal(f"gives {name} with a stray {left[:20]!r}")
    if len(words) != count:
        raise header.refusal(f"gives {len(words)} {name} for {count} axes")
    return [None if word.lower() == "none" else _vector(word, header, name) for word in words]


def _vector(text: str, header: TextHeader, name: str) -> list[float]:
    """Three numbers, the third 0 where the space has two dimensions."""
    flat = "space" not in header.fields and header.text("space dimension", "") == "2"
    if not (text.startswith("(") and text.endswith(")")):
        raise header.refusal(f"gives {name} as {text[:60]!r}; a vector such as (1,0,0) is needed")
    return [*header.numbers_of(text[1:-1].replace(",", " "), 2 if flat else 3, name), 0.0][:3]


def _geometry(
    header: TextHeader, directions: list[list[float] | None] | None, domain: list[int]
) -> tuple[npt.NDArray[np.float64], list[str]]:
    remarks = []
    affine = np.eye(4)
    used = min(len(domain), 3)
    if directions is not None:
        if not used:
            raise header.refusal("gives no space directions, and so no voxel size", "Add them, in mm.")
        affine[:3, :used] = np.array([directions[axis] for axis in domain[:3]]).T
    elif "spacings" in header.fields:
        words = header.text("spacings").split()
        spacings = [words[axis] for axis in domain[:3] if axis < len(words)]
        affine[:used, :used] = np.diag(header.numbers_of(" ".join(spacings), used, "spacings"))
        remarks.append("the header gives no space directions: the axes are taken for those of its space")
    else:
        raise header.refusal("gives no voxel size (space directions or spacings)", "Add it, in mm.")
    if "space origin" in header.fields:
        affine[:3, 3] = _vector(header.text("space origin"), header, "space origin")
    else:
        remarks.append("the header gives no space origin: the first voxel is taken to lie at the origin")
    space = re.sub(r"[- ]", "", header.text("space", "").lower())
    if space not in _SPACES and space not in _OTHER_SPACES:
        raise header.refusal(f"names a space of three axes that NRRD does not know: {header.text('space')!r}")
    if space not in _SPACES:
        remarks = [unknown_orientation("the header names no anatomical space")]
    return np.diag([*_SPACES.get(space, (-1, -1, 1)), 1.0]) @ affine, remarks


def _parts(header: TextHeader, sizes: tuple[int, ...], encoding: Encoding) -> tuple[int, tuple[Part, ...]]:
    """Bytes to leave out of each decoded part, and the parts."""
    lines, skip = header.integer("line skip", "0"), header.integer("byte skip", "0")
    if lines < 0 or skip < -1 or (skip == -1 and (lines or encoding != "raw")):
        raise header.refusal(f"leaves out {lines} lines and {skip} bytes before such data")
    if encoding in ("text", "hex") and skip:
        raise header.refusal(f"leaves out {skip} bytes of text")
    named = header.fields.get("data file")
    words = named.split() if named else []
    start, files = 0, []
    if named is None:
        start, files = header.end, [header.path]
    elif words[:1] == ["LIST"]:
        deep = header.integers_of(words[1], 1, "LIST")[0] if len(words) > 1 else len(sizes) - 1
        _check_count(header, len(header.listed), sizes, deep)
        files = [header.beside(name) for name in header.listed]
    elif "%" in named:
        bounds = header.integers_of(" ".join(words[1:]), None, "the numbers of its data files")
        if len(bounds) not in (3, 4) or bounds[2] == 0:
            raise header.refusal(f"numbers its data files by {named!r}; first, last and step are needed")
        chosen = range(bounds[0], bounds[1] + (1 if bounds[2] > 0 else -1), bounds[2])
        _check_count(header, len(chosen), sizes, bounds[3] if len(bounds) > 3 else len(sizes) - 1)
        files = header.numbered_files(words[0], chosen)
    else:
        files = [header.beside(named)]
    if skip == -1:
        start, skip = -1, 0
    return skip, tuple(Part(file, start, lines=lines) for file in files)


def _check_count(header: TextHeader, files: int, sizes: tuple[int, ...], deep: int) -> None:
    """Whether `files` files of `deep` axes each hold what the sizes say; of all axes, they share the slowest one."""
    fits = 1 <= deep < len(sizes) and files == math.prod(sizes[deep:])
    shares = deep == len(sizes) and files > 0 and sizes[-1] % files == 0
    if not fits and not shares:
        raise header.refusal(f"names {files} data files, which do not fit its sizes")
