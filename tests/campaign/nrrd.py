"""NRRD, from its definition (teem.sourceforge.net/nrrd/format.html), version 5."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from random import Random

import numpy as np

from campaign.meaning import Meaning, Undefined, need, number, require_volume, whole
from campaign.mutators import damage, encoded, line_change

_NAMES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
TYPES = {name: code for code, names in _NAMES.items() for name in names.split(", ")}
# Signs that take the first two world axes to right and anterior.
SPACES = {
    **{"right-anterior-superior": (1, 1), "ras": (1, 1), "left-anterior-superior": (-1, 1), "las": (-1, 1)},
    **{"left-posterior-superior": (-1, -1), "lps": (-1, -1)},
}
_KNOWN = "type dimension sizes encoding endian space,space dimension,space directions,space origin,space units,kinds"
_FIELDS = {f for part in _KNOWN.split(",") for f in (part.split() if "type" in part else [part])}
_FIELDS |= {"data file", "line skip", "byte skip", "measurement frame", "spacings", "thicknesses", "axis mins"}
_FIELDS |= {"axis maxs", "centers", "labels", "units", "min", "max", "old min", "old max", "content", "number"}
_FIELDS |= {"block size", "sample units"}
_SAME = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "centerings": "centers"}
_EXTRA = ("byte skip: 4", "byte skip: -1", "line skip: 1", 'space units: "cm" "cm" "cm"', "content: x", "a:=b", "# x")
_EXTRA += ("spacings: 9 9 9", "measurement frame: (1,0,0) (0,1,0) (0,0,1)", "old min: 3", "labels: x y z", "foo: bar")
_EXTRA += (
    'space units: "mm" "mm" "mm"',
    'space units: "um" "um" "um"',
    "space dimension: 3",
    "centers: node node node",
)


def sample(rng: Random, encoding: str, detached: bool) -> dict[str, bytes]:
    kind = rng.choice(("short", "int16", "float", "uchar"))
    big = rng.random() < 0.2
    space = rng.choice(("left-posterior-superior", "left-posterior-superior", "LPS", "right-anterior-superior"))
    space = "left-posterior-superior" if rng.random() < 0.7 else space
    values = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 250, (12, 10, 6))
    body = values.astype((">" if big else "<") + TYPES[kind]).tobytes(order="F")
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    stored = packer.compress(body) + packer.flush() if encoding == "gzip" else body
    lines = [
        "NRRD0004",
        "# a comment",
        f"type: {kind}",
        "dimension: 3",
        f"space: {space}",
        "sizes: 12 10 6",
        "space directions: (1.4925,0.15,0) (-0.119,1.194,0) (0,0,3)",
        "kinds: domain domain domain",
        f"endian: {'big' if big else 'little'}",
        f"encoding: {encoding}",
        "space origin: (-20,-30,-10)",
        *(["data file: x.raw"] if detached else []),
    ]
    header = ("\n".join(lines) + "\n").encode()
    return {"x.nrrd": header, "x.raw": stored} if detached else {"x.nrrd": header + b"\n" + stored}


def mutate(rng: Random, files: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    content = files["x.nrrd"]
    end = content.find(b"\n\n") + 1 or len(content)
    draw = rng.random()
    if draw < 0.6:
        lines = content[:end].decode().splitlines()
        said = line_change(rng, lines, _EXTRA)
        return said, files | {"x.nrrd": encoded("\n".join(lines) + "\n") + content[end:]}
    if draw < 0.7 and len(files) == 2:
        said, changed = damage(rng, files["x.raw"], 20)
        return f"data: {said}", files | {"x.raw": changed}
    said, changed = damage(rng, content, end + 20 if rng.random() < 0.7 else None)
    return said, files | {"x.nrrd": changed}


def meaning(folder: Path) -> Meaning:
    content = (folder / "x.nrrd").read_bytes()
    lines, at = [], 0
    while at < len(content):
        end = content.find(b"\n", at)
        line = content[at : end if end >= 0 else len(content)].rstrip(b"\r")
        at = end + 1 if end >= 0 else len(content)
        if not line:
            break
        need(b"\0" not in line, "NUL in the header")
        lines.append(line.decode("latin-1"))
    need(lines and re.fullmatch(r"NRRD000[1-5]", lines[0]), "no NRRD")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith("#") or re.match(r"[^:]*:=", line):
            continue
        name, sign, value = line.partition(":")
        name = _SAME.get(name.strip().lower(), name.strip().lower())
        need(sign and name in _FIELDS and name not in fields, f"unknown or repeated field: {line[:40]}")
        fields[name] = value.strip()
    doubts: list[str] = []
    shape, affine = _grid(fields, doubts)
    code = TYPES.get(fields.get("type", "").lower())
    need(code, "unknown type")
    kind = np.dtype(code)
    if kind.itemsize > 1:
        endian = fields.get("endian", "").lower()
        need(endian in ("little", "big"), "no endian")
        kind = kind.newbyteorder("<" if endian == "little" else ">")
    data = content[at:]
    if "data file" in fields:
        name = fields["data file"]
        if "/" in name or name in ("", ".", "..") or not (folder / name).is_file():
            return Meaning(shape, affine, None, doubts)
        data = (folder / name).read_bytes()
    return _with_values(fields, shape, affine, kind, data, doubts)


def _with_values(
    fields: dict[str, str], shape: tuple[int, ...], affine: np.ndarray, kind: np.dtype, data: bytes, doubts: list[str]
) -> Meaning:
    lines, skipped = whole(fields.get("line skip", "0")), whole(fields.get("byte skip", "0"))
    need(lines >= 0 and skipped >= -1, "impossible skip")
    count = shape[0] * shape[1] * shape[2]
    for _ in range(min(lines, 1000)):
        data = data.partition(b"\n")[2]
    encoding = fields.get("encoding", "").lower()
    if encoding in ("gzip", "gz"):
        need(skipped >= 0, "byte skip -1 is of raw data")
        unpacker = zlib.decompressobj(31)
        try:
            data = unpacker.decompress(data)
        except zlib.error:
            return Meaning(shape, affine, None, doubts)
        if not unpacker.eof:
            return Meaning(shape, affine, None, doubts)
    else:
        need(encoding == "raw", "unknown or text encoding")
    data = data[skipped:] if skipped >= 0 else data[max(0, len(data) - count * kind.itemsize) :]
    if len(data) < count * kind.itemsize:
        return Meaning(shape, affine, None, doubts)
    return Meaning(shape, affine, np.frombuffer(data, kind, count).reshape(shape, order="F").astype(float), doubts)


def _grid(fields: dict[str, str], doubts: list[str]) -> tuple[tuple[int, ...], np.ndarray]:
    need(whole(fields.get("dimension", "")) == 3, "not 3 axes")
    shape = tuple(whole(word) for word in fields.get("sizes", "").split())
    need(len(shape) == 3 and min(shape) > 0, "impossible sizes")
    space = fields.get("space", "").lower()
    signs = SPACES.get(space)
    if signs is None:
        need("space" not in fields or re.fullmatch(r"scanner-xyz|3d-(right|left)-handed", space), "unknown space")
        doubts.append("no anatomical space")
        signs = (-1, -1)
    need(whole(fields.get("space dimension", "3")) == 3, "not a space of three axes")
    vectors = re.fullmatch(r"\s*".join([r"(\([^()]*\)|none)"] * 3), fields.get("space directions", ""))
    if vectors is None or "none" in vectors.groups():
        need("space directions" not in fields or vectors, "impossible space directions")
        raise Undefined("no directions")
    affine = np.eye(4)
    affine[:3, :3] = np.array([_vector(text) for text in vectors.groups()]).T
    if "space origin" in fields:
        affine[:3, 3] = _vector(fields["space origin"])
    else:
        doubts.append("no origin")
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    need("space units" not in fields or len(units) == 3, "impossible space units")
    if any(unit != "mm" for unit in units):
        doubts.append("space units")
    if any(word not in ("domain", "space", "none", "???") for word in fields.get("kinds", "").lower().split()):
        doubts.append("kinds that are not of space")
    for name in ("spacings", "thicknesses", "axis mins", "axis maxs"):
        need(name not in fields or name == "thicknesses", f"{name} beside a space")
    affine = np.diag([*signs, 1, 1]) @ affine
    require_volume(shape, affine)
    return shape, affine


def _vector(text: str) -> np.ndarray:
    found = re.fullmatch(r"\(([^()]*)\)", text.strip())
    need(found, f"'{text}' is no vector")
    assert found is not None
    parts = found[1].split(",")
    need(len(parts) == 3, f"'{text}' has not three numbers")
    return np.array([number(part) for part in parts])
