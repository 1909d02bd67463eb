"""MetaImage (.mha, .mhd), from MetaIO's documentation of its tags, as ITK takes them."""

from __future__ import annotations

import zlib
from pathlib import Path
from random import Random

import numpy as np

from campaign.meaning import LPS_TO_RAS, Meaning, need, number, numbers, require_volume, whole
from campaign.mutators import damage, encoded, line_change

TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG": "i8", "MET_ULONG": "u8", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_ALIASES = {
    **dict.fromkeys(("Origin", "Position"), "Offset"),
    **dict.fromkeys(("Rotation", "Orientation"), "TransformMatrix"),
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
# Keys that say where and what the voxels are; one that stands twice with two values is doubtful.
_MEANT = {"NDims", "DimSize", "ElementType", "Offset", "TransformMatrix", "ElementSpacing", "BinaryData"}
_MEANT |= {"BinaryDataByteOrderMSB", "CompressedData", "CompressedDataSize", "HeaderSize", "ElementNumberOfChannels"}
_EXTRA = ("HeaderSize = 5", "HeaderSize = -1", "ElementNumberOfChannels = 2", "Modality = MET_MOD_CT", "Comment = x")
_EXTRA += ("ElementToIntensityFunctionSlope = 2", "Origin = 1 2 3", "BinaryData = False", "ElementSize = 9 9 9")


def sample(rng: Random, layout: str) -> dict[str, bytes]:
    """`layout`: "raw" and "compressed" in one file, "split" in two."""
    kind = rng.choice(("MET_SHORT", "MET_SHORT", "MET_FLOAT", "MET_UCHAR"))
    big = rng.random() < 0.2
    values = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 250, (12, 10, 6))
    turn = np.linalg.qr(np.array([[1.0, 0.1, 0], [-0.1, 1.0, 0.05], [0, -0.05, 1.0]]))[0]
    turn = turn * np.sign(np.diag(turn))
    body = values.astype((">" if big else "<") + TYPES[kind]).tobytes(order="F")
    stored = zlib.compress(body) if layout == "compressed" else body
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        f"BinaryDataByteOrderMSB = {big}",
        f"CompressedData = {layout == 'compressed'}",
        *([f"CompressedDataSize = {len(stored)}"] if layout == "compressed" else []),
        "TransformMatrix = " + " ".join(f"{v:.12g}" for v in turn.T.ravel()),
        "Offset = -20 -30 -10",
        "CenterOfRotation = 0 0 0",
        "AnatomicalOrientation = RAI",
        "ElementSpacing = 1.5 1.2 3",
        "DimSize = 12 10 6",
        f"ElementType = {kind}",
        f"ElementDataFile = {'x.raw' if layout == 'split' else 'LOCAL'}",
    ]
    header = ("\n".join(lines) + "\n").encode()
    return {"x.mhd": header, "x.raw": stored} if layout == "split" else {"x.mha": header + stored}


def mutate(rng: Random, files: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    name = next(iter(files))
    content = files[name]
    end = content.index(b"\n", content.index(b"ElementDataFile")) + 1
    draw = rng.random()
    if draw < 0.6:
        lines = content[:end].decode().splitlines()
        said = line_change(rng, lines, _EXTRA)
        return said, files | {name: encoded("\n".join(lines) + "\n") + content[end:]}
    if draw < 0.7 and len(files) == 2:
        said, changed = damage(rng, files["x.raw"])
        return f"data: {said}", files | {"x.raw": changed}
    said, changed = damage(rng, content, end + 8 if rng.random() < 0.7 else None)
    return said, files | {name: changed}


def meaning(folder: Path) -> Meaning:
    path = next(p for p in folder.iterdir() if p.suffix in (".mha", ".mhd"))
    content = path.read_bytes()
    fields: dict[str, str] = {}
    doubts: list[str] = []
    at = 0
    while "ElementDataFile" not in fields:
        end = content.find(b"\n", at) if b"\n" in content[at:] else len(content)
        need(at < len(content), "the header has no end")
        line = content[at:end].rstrip(b"\r")
        at = end + 1
        need(b"\0" not in line, "NUL in the header")
        key, sign, value = line.decode("latin-1").partition("=")
        key, value = key.strip(), value.strip()
        if not key and not sign:
            continue
        need(sign, f"a line without '=': {line[:40]!r}")
        key = _ALIASES.get(key, key)
        if key in _MEANT and fields.get(key, value) != value:
            doubts.append(f"{key} stands twice")
        fields[key] = value
    need(fields.get("ObjectType", "Image") == "Image", "no image")
    need(whole(fields.get("NDims", "")) == 3, "not 3 axes")
    shape = tuple(whole(word) for word in fields.get("DimSize", "").split())
    need(fields.get("ElementType") in TYPES, "unknown ElementType")
    need(len(shape) == 3 and min(shape) > 0, "impossible DimSize")
    need(whole(fields.get("ElementNumberOfChannels", "1")) == 1, "several channels")
    binary = _true(fields, "BinaryData", "True")
    for key, default in (("ElementToIntensityFunctionSlope", "1"), ("ElementToIntensityFunctionOffset", "0")):
        if number(fields.get(key, default)) != float(default):
            doubts.append(f"{key}: programs differ")
    doubts += [f"no {key}" for key in ("Offset", "TransformMatrix", "ElementSpacing") if key not in fields]
    lps = np.eye(4)
    spacing = numbers(fields.get("ElementSpacing", fields.get("ElementSize", "1 1 1")), 3)
    need((spacing > 0).all(), "impossible ElementSpacing")
    lps[:3, :3] = numbers(fields.get("TransformMatrix", "1 0 0 0 1 0 0 0 1"), 9).reshape(3, 3).T * spacing
    lps[:3, 3] = numbers(fields.get("Offset", "0 0 0"), 3)
    directions = lps[:3, :3] / spacing
    if np.abs(np.linalg.norm(directions, axis=0) - 1).max() > 1e-3:
        doubts.append("directions that are not of length 1")
    affine = LPS_TO_RAS @ lps
    require_volume(shape, affine)
    place = fields["ElementDataFile"]
    if place != "LOCAL":
        if "/" in place or place in ("", ".", "..") or not (folder / place).is_file():
            return Meaning(shape, affine, None, doubts)
        content, at = (folder / place).read_bytes(), 0
    kind = np.dtype((">" if _true(fields, "BinaryDataByteOrderMSB", "False") else "<") + TYPES[fields["ElementType"]])
    count = shape[0] * shape[1] * shape[2]
    data = content[at:]
    if (skipped := whole(fields.get("HeaderSize", "0"))) != 0:
        need(skipped >= -1, "impossible HeaderSize")
        data = content[skipped:] if skipped > 0 else content[len(content) - count * kind.itemsize :]
    if _true(fields, "CompressedData", "False"):
        size = whole(fields["CompressedDataSize"]) if "CompressedDataSize" in fields else len(data)
        unpacker = zlib.decompressobj(47)  # zlib's or gzip's wrapping
        try:
            unpacked = unpacker.decompress(data[: max(size, 0)])
        except zlib.error:
            return Meaning(shape, affine, None, doubts)
        if not unpacker.eof or len(unpacked) != count * kind.itemsize:
            return Meaning(shape, affine, None, doubts)
        data = unpacked
    if not binary or len(data) < count * kind.itemsize:
        return Meaning(shape, affine, None, doubts)
    values = np.frombuffer(data, kind, count).reshape(shape, order="F").astype(np.float64)
    return Meaning(shape, affine, values, doubts)


def _true(fields: dict[str, str], key: str, default: str) -> bool:
    value = fields.get(key, default).lower()
    need(value in ("true", "false", "1", "0"), f"{key} is neither True nor False")
    return value in ("true", "1")
