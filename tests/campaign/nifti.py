"""NIfTI-1 and NIfTI-2, from nifti1.h and nifti2.h; what they leave open is told as nifti1_io.c does it, or doubted."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np

from campaign.meaning import STREAM, Meaning, Undefined, apart, need, require_volume
from campaign.mutators import binary_field, damage

# name -> (offset, struct code, how many)
FIELDS = {
    1: {
        **{"sizeof_hdr": (0, "i", 1), "dim_info": (39, "B", 1), "dim": (40, "h", 8), "intent_code": (68, "h", 1)},
        **{"datatype": (70, "h", 1), "bitpix": (72, "h", 1), "slice_start": (74, "h", 1), "pixdim": (76, "f", 8)},
        **{"vox_offset": (108, "f", 1), "slope": (112, "f", 1), "inter": (116, "f", 1), "slice_code": (122, "b", 1)},
        **{"xyzt_units": (123, "B", 1), "cal_max": (124, "f", 1), "qform_code": (252, "h", 1)},
        **{"sform_code": (254, "h", 1), "quatern": (256, "f", 3), "qoffset": (268, "f", 3), "srow": (280, "f", 12)},
        **{"magic": (344, "s", 4), "extension": (348, "B", 4)},
    },
    2: {
        **{"sizeof_hdr": (0, "i", 1), "magic": (4, "s", 8), "datatype": (12, "h", 1), "bitpix": (14, "h", 1)},
        **{"dim": (16, "q", 8), "pixdim": (104, "d", 8), "vox_offset": (168, "q", 1), "slope": (176, "d", 1)},
        **{"inter": (184, "d", 1), "qform_code": (344, "i", 1), "sform_code": (348, "i", 1), "quatern": (352, "d", 3)},
        **{"qoffset": (376, "d", 3), "srow": (400, "d", 12), "xyzt_units": (500, "i", 1), "dim_info": (524, "B", 1)},
        "extension": (540, "B", 4),
    },
}
SIZES, MAGICS = {1: 348, 2: 540}, {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
TYPES = {
    **{2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"},
}


def sample(rng: Random, version: int, compressed: bool) -> dict[str, bytes]:
    """A volume with values and a geometry in which every axis and every number is another one."""
    order = rng.choice("<<<>")
    code = rng.choice((4, 4, 16, 2, 512))
    forms = rng.choice(("both", "both", "qform", "sform"))
    values = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 250, (12, 10, 6))
    b, c, d = 0.02, -0.05, rng.choice((0.1, 0.03))
    affine = _rotation(b, c, d) @ np.diag([1.5, 1.2, 3.0])
    header = {
        "sizeof_hdr": [SIZES[version]],
        "dim": [3, 12, 10, 6, 1, 1, 1, 1],
        "datatype": [code],
        "bitpix": [np.dtype(TYPES[code]).itemsize * 8],
        "pixdim": [1, 1.5, 1.2, 3, 0, 0, 0, 0],
        "vox_offset": [SIZES[version] + 4],
        "slope": [rng.choice((0, 1, 2))],
        "inter": [rng.choice((0, -1000))],
        "xyzt_units": [2],
        "qform_code": [int(forms != "sform")],
        "sform_code": [int(forms != "qform")],
        "quatern": [b, c, d],
        "qoffset": [20, 30, -10],
        "srow": np.column_stack([affine, [20, 30, -10]]).ravel().tolist(),
    }
    if forms == "qform":
        header["srow"] = [0] * 12
    content = bytearray(SIZES[version] + 4)
    for name, (at, kind, count) in FIELDS[version].items():
        if name in header:
            struct.pack_into(f"{order}{count}{kind}", content, at, *header[name])
    at = FIELDS[version]["magic"][0]
    content[at : at + len(MAGICS[version])] = MAGICS[version]
    body = values.astype(order + TYPES[code]).tobytes(order="F")
    name = "x.nii.gz" if compressed else "x.nii"
    return {name: _gzip(bytes(content) + body) if compressed else bytes(content) + body}


def mutate(rng: Random, files: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    ((name, content),) = files.items()
    compressed = name.endswith(".gz")
    if compressed:
        if rng.random() < 0.25:
            said, changed = damage(rng, content, 20)
            return f"stream: {said}", {name: changed}
        if rng.random() < 0.05:
            return "stored without compression", {name: zlib.decompress(content, 31)}
        content = zlib.decompress(content, 31)
    version = 2 if content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)) else 1
    if rng.random() < 0.65:
        field, (at, code, count) = rng.choice(list(FIELDS[version].items()))
        order = "<" if content[:4] == struct.pack("<i", SIZES[version]) else ">"
        size = struct.calcsize(code)
        index = rng.randrange(count)
        at += index * size
        new = binary_field(rng, code, content[at : at + size], order)
        said, changed = f"{field}[{index}] = {new.hex()} ({order})", content[:at] + new + content[at + size :]
    else:
        said, changed = damage(rng, content, SIZES[version] + 4)
    return said, {name: _gzip(changed) if compressed else changed}


def meaning(folder: Path) -> Meaning:
    (path,) = folder.iterdir()
    content, whole, doubts = path.read_bytes(), True, []
    if path.name.endswith(".gz"):
        content, whole, doubts = _inflated(content)
    need(len(content) >= 348, "cut in the header" if whole else STREAM)
    version = next((v for v, n in SIZES.items() for o in "<>" if content[:4] == struct.pack(f"{o}i", n)), None)
    need(version, "sizeof_hdr is neither 348 nor 540")
    assert version is not None
    order = "<" if content[:4] == struct.pack("<i", SIZES[version]) else ">"
    need(len(content) >= SIZES[version], "cut in the header")
    get = {
        name: struct.unpack_from(f"{order}{count}{code}", content, at)
        for name, (at, code, count) in FIELDS[version].items()
        if name not in ("magic", "extension")
    }
    at = FIELDS[version]["magic"][0]
    need(content[at : at + len(MAGICS[version])] == MAGICS[version], "the magic is not that of a single file")
    dims = get["dim"]
    need(1 <= dims[0] <= 7 and all(n > 0 for n in dims[1 : dims[0] + 1]), "impossible dim")
    need(dims[0] >= 3 and all(n == 1 for n in dims[4 : dims[0] + 1]), "not one 3D volume")
    shape = tuple(int(n) for n in dims[1:4])
    code = get["datatype"][0]
    need(code in TYPES, "unknown or no scalar datatype")
    kind = np.dtype(order + TYPES[code])
    need(get["bitpix"][0] == kind.itemsize * 8, "datatype and bitpix contradict each other")
    affine = _place(get, shape, doubts)
    require_volume(shape, affine)
    offset = get["vox_offset"][0]
    need(np.isfinite(offset) and offset >= SIZES[version] and offset == int(offset), "impossible vox_offset")
    if offset < SIZES[version] + 4:
        doubts.append("the voxels begin in the extension flag")
    count = shape[0] * shape[1] * shape[2]
    if not whole or len(content) < offset + count * kind.itemsize:
        return Meaning(shape, affine, None, doubts)
    values = np.frombuffer(content, kind, count, int(offset)).reshape(shape, order="F").astype(np.float64)
    slope, inter = get["slope"][0], get["inter"][0]
    if not np.isfinite(slope) or (slope != 0 and not np.isfinite(inter)):
        doubts.append("slope or intercept is not finite")
    elif slope != 0:
        with np.errstate(all="ignore"):
            values = values * slope + inter
    return Meaning(shape, affine, values, doubts)


def _place(get: dict[str, tuple[float, ...]], shape: tuple[int, ...], doubts: list[str]) -> np.ndarray | None:
    """nifti1.h, methods 1 to 3: the sform where coded, else the qform, else nothing is known."""
    unit = int(get["xyzt_units"][0]) & 7
    if unit not in (0, 2):
        doubts.append(f"lengths in unit {unit}")
    sform = np.vstack([np.reshape(get["srow"], (3, 4)), [0, 0, 0, 1]]) if get["sform_code"][0] > 0 else None
    qform = None
    if get["qform_code"][0] > 0:
        try:
            qform = _qform(get)
        except Undefined:
            if sform is None:
                raise
            doubts.append("the qform is unusable")
    if sform is None:
        if qform is None:
            doubts.append("no orientation")
        return qform
    if qform is not None and apart(shape, sform, qform, 1.5):
        doubts.append("sform and qform differ")
    return sform


def _qform(get: dict[str, tuple[float, ...]]) -> np.ndarray:
    b, c, d = get["quatern"]
    sizes, shift = np.array(get["pixdim"][1:4]), np.array(get["qoffset"])
    need(np.isfinite([b, c, d, get["pixdim"][0]]).all() and np.isfinite(shift).all(), "qform not finite")
    need((sizes > 0).all() and np.isfinite(sizes).all(), "impossible pixdim")
    need(b * b + c * c + d * d <= 1.002, "no quaternion of a rotation")  # rounded to three decimals
    affine = np.eye(4)
    affine[:3, :3] = _rotation(b, c, d) * sizes * [1, 1, -1 if get["pixdim"][0] < 0 else 1]
    affine[:3, 3] = shift
    return affine


def _rotation(b: float, c: float, d: float) -> np.ndarray:
    length = b * b + c * c + d * d
    a = np.sqrt(max(0.0, 1 - length))
    if length > 1:
        b, c, d = np.array([b, c, d]) / np.sqrt(length)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )


def _gzip(content: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(content) + packer.flush()


def _inflated(content: bytes) -> tuple[bytes, bool, list[str]]:
    """RFC 1952, members one after another, each with its checksum: what there is of it, and whether it is sound."""
    if content[:4] in (struct.pack(f"{o}i", n) for n in SIZES.values() for o in "<>"):
        return content, True, ["not compressed"]
    found = b""
    while content[:2] == b"\x1f\x8b" or not found:
        stream = zlib.decompressobj(31)
        try:
            for at in range(0, len(content), 16):
                found += stream.decompress(content[at : at + 16])
                if stream.eof:
                    break
        except zlib.error:
            return found, False, []
        if not stream.eof:
            return found, False, []
        content = stream.unused_data + content[at + 16 :]
    return found, True, ["bytes after the stream"] if content.strip(b"\0\n") else []
