"""PNG (W3C, second edition) and TIFF 6.0, gray and plain: one picture as a volume of one slice."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np

from campaign.meaning import Meaning, Undefined, need
from campaign.mutators import binary_field, damage

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # columns to the left, rows to the back

# TIFF 6.0, Orientation: what brings the first row to the top and the first column to the left.
_TURNS = {
    **{1: np.asarray, 2: np.fliplr, 3: lambda p: p[::-1, ::-1], 4: np.flipud, 5: np.transpose},
    **{6: lambda p: np.rot90(p, -1), 7: lambda p: p[::-1, ::-1].T, 8: np.rot90},
}


def sample(rng: Random, suffix: str) -> dict[str, bytes]:
    code = rng.choice(("u1", "u2"))
    high = 250 if code == "u1" else 60000
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, high, (14, 12)).astype(code)
    return {f"x{suffix}": _png(pixels) if suffix == ".png" else _tiff(pixels)}


def mutate(rng: Random, files: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    ((name, content),) = files.items()
    if rng.random() < 0.4:
        said, changed = damage(rng, content, 60 if rng.random() < 0.3 else None)
    elif name == "x.png":
        chunks = list(_chunks(content))
        at = rng.randrange(len(chunks))
        kind, body = chunks[at]
        said = rng.choice(("body", "body", "drop", "twice", "kind", "tRNS"))
        chunks[at : at + 1] = {
            "body": [(kind, damage(rng, body)[1])],
            "drop": [],
            "twice": [(kind, body)] * 2,
            "kind": [(rng.choice((b"PLTE", b"iDAT", b"IDAT", b"teXt")), body)],
            "tRNS": [(kind, body), (b"tRNS", b"\0\7")],
        }[said]
        said, changed = f"{said} of {kind!r}", _SIGNATURE + b"".join(_chunk(k, b) for k, b in chunks)
    else:
        (at,) = struct.unpack_from("<I", content, 4)
        at += 2 + 12 * rng.randrange(struct.unpack_from("<H", content, at)[0])
        part = rng.choice((0, 2, 4, 8, 8, 8))
        code = "I" if part in (4, 8) else "H"
        new = binary_field(rng, code, content[at + part : at + part + struct.calcsize(code)], "<")
        said = f"tag {struct.unpack_from('<H', content, at)[0]} byte {part}: {new.hex()}"
        changed = content[: at + part] + new + content[at + part + len(new) :]
    return said, {name: changed}


def meaning(folder: Path) -> Meaning:
    (path,) = folder.iterdir()
    doubts: list[str] = []
    try:
        pixels = (_read_png if path.suffix == ".png" else _read_tiff)(path.read_bytes(), doubts)
    except (struct.error, IndexError, KeyError, zlib.error) as error:
        raise Undefined(f"damaged: {error!r}") from error
    need(min(pixels.shape) > 1, "less than two axes")
    values = pixels.T[:, :, None].astype(np.float64)
    return Meaning(values.shape, _AFFINE, values, doubts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(pixels: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], pixels.itemsize * 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tEXt", b"Title\0x"), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(*part) for part in parts)


def _chunks(content: bytes):  # type: ignore[no-untyped-def]
    need(content.startswith(_SIGNATURE), "no PNG")
    at = len(_SIGNATURE)
    while True:
        (size,) = struct.unpack_from(">I", content, at)
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        (check,) = struct.unpack_from(">I", content, at + 8 + size)
        # PNG 5.4: the case of a letter says whether a chunk may be passed over.
        need(check == zlib.crc32(kind + body) or kind[:1].islower(), "wrong checksum")
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + size


def _read_png(content: bytes, doubts: list[str]) -> np.ndarray:
    chunks = list(_chunks(content))
    need(chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13, "no IHDR")
    width, height, bits, color, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    need(
        0 < width < 1 << 31 and 0 < height < 1 << 31 and rest == [0, 0, 0] and color == 0 and bits in (8, 16),
        "not plain",
    )
    kinds = [kind for kind, _ in chunks]
    need(kinds.count(b"IHDR") == 1 and b"IDAT" in kinds, "chunks missing or repeated")
    need(all(k in (b"IHDR", b"IDAT", b"IEND", b"PLTE") or k[:1].islower() for k in kinds), "unknown critical chunk")
    stream = zlib.decompressobj()
    data = stream.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    step = bits // 8
    length = width * step + 1
    need(stream.eof and len(data) >= length * height, "pixels cut short")
    rows = np.frombuffer(data, np.uint8, length * height).reshape(height, length).astype(int)
    before = np.zeros(length - 1, int)
    result = []
    for filtered in rows:
        line = filtered[1:].copy()
        need(filtered[0] <= 4, "unknown filter")
        for i in range(length - 1):
            left, up, corner = (line[i - step] if i >= step else 0), before[i], (before[i - step] if i >= step else 0)
            near = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
            line[i] = (line[i] + (0, left, up, (left + up) // 2, near)[filtered[0]]) & 255
        before = line
        result.append(line.astype(np.uint8).tobytes())
    pixels = np.frombuffer(b"".join(result), f">u{step}").reshape(height, width)
    before = chunks[: kinds.index(b"IDAT")]  # PNG 5.6: where tRNS counts
    if any(kind == b"tRNS" and (pixels == int.from_bytes(body[:2])).any() for kind, body in before):
        doubts.append("transparent pixels")
    return pixels


def _tiff(pixels: np.ndarray) -> bytes:
    tags = {256: 12, 257: 14, 258: pixels.itemsize * 8, 259: 1, 262: 1, 273: 8, 274: 1, 277: 1, 278: 14}
    tags |= {279: pixels.nbytes, 284: 1, 339: 1}
    body = pixels.tobytes()
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items()
    )
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def _read_tiff(content: bytes, doubts: list[str]) -> np.ndarray:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    need(order, "no TIFF")
    (at,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, at)
    tags: dict[int, int] = {}
    for k in range(count):
        tag, kind, number = struct.unpack_from(f"{order}HHI", content, at + 2 + 12 * k)
        code = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}.get(kind)
        if code and number == 1:  # others are passed over; what is needed is missed below
            (value,) = struct.unpack_from(f"{order}{code}", content, at + 2 + 12 * k + 8)
            need(tags.setdefault(tag, value) == value or tag in (278, 279), f"tag {tag} stands twice")
    need(struct.unpack_from(f"{order}I", content, at + 2 + 12 * count)[0] == 0, "several pages")
    width, height, bits = tags[256], tags[257], tags.get(258, 1)
    need(tags.get(259, 1) == 1 and tags.get(277, 1) == 1 and tags.get(317, 1) == 1 and 322 not in tags, "not plain")
    need(tags.get(262) in (0, 1) and bits in (8, 16, 32) and tags.get(339, 1) in (1, 2, 3, 4), "not gray")
    if tags[262] == 0 or tags.get(339, 1) == 4 or tags.get(278, height) < height or tags.get(274, 1) not in _TURNS:
        doubts.append("WhiteIsZero, undefined values, several strips or an unknown Orientation")
    kind = np.dtype(f"{order}{ {2: 'i', 3: 'f'}.get(tags.get(339, 1), 'u') }{bits // 8}")
    offset, needed = tags[273], width * height * bits // 8
    need(width > 0 and height > 0 and offset + needed <= len(content), "pixels cut short")
    pixels = np.frombuffer(content, kind, width * height, offset).reshape(height, width)
    return _TURNS.get(tags.get(274, 1), np.asarray)(pixels)
