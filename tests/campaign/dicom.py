"""DICOM series, from PS3.3 (C.7.6.2, C.7.6.3, C.7.6.16, C.11.1) and PS3.5; pydicom only takes the elements apart."""

from __future__ import annotations

import io
import re
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pydicom
from dicom_files import OBLIQUE, write_enhanced, write_series
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from campaign.meaning import LPS_TO_RAS, Meaning, Undefined, need, numbers, whole
from campaign.mutators import WORDS, binary_field, damage

_KEYWORDS = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "Modality", "ImageType", "InstanceNumber", "SliceThickness", "SeriesInstanceUID"),
    *("SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID", "StudyInstanceUID", "PatientID", "PixelData"),
    *("TransferSyntaxUID", "SpecificCharacterSet", "NumberOfFrames", "StackID", "RescaleType", "PatientPosition"),
)
_LONG = {"OB", "OW", "OF", "SQ", "UT", "UN", "UC", "UR", "OD", "OL"}


@dataclass(frozen=True)
class _Frame:
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    pixels: np.ndarray | None  # (rows, columns), rescaled
    size: tuple[int, int]
    shared: tuple[str, ...]  # what all frames of a volume have in common
    instance: tuple[str, int]


@cache
def _series(layout: str, kind: int) -> dict[str, bytes]:
    values = np.random.default_rng(kind).integers(0, 2900, (12, 10, 5))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "s"
        if layout == "enhanced":
            write_enhanced(root / "im.dcm", values.astype(np.int16 if kind % 2 else np.uint16))
        else:
            modality = ("MR", "CT")[kind % 2]
            write_series(root, values.astype(np.uint16 if kind > 1 else np.int16), OBLIQUE, modality=modality)
        return {f"s/{file.name}": file.read_bytes() for file in sorted(root.iterdir())}


def sample(rng: Random, layout: str) -> dict[str, bytes]:
    return _series(layout, rng.randrange(4))


def mutate(rng: Random, files: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    name = rng.choice(sorted(files))
    chosen = [name] if rng.random() < 0.6 else sorted(files)
    draw = rng.random()
    if draw < 0.65:
        keyword = rng.choice(_KEYWORDS)
        state = rng.getrandbits(32)
        changed = {n: _with_element(Random(state), keyword, files[n], len(files) > 1) for n in chosen}
        return f"{keyword} in {len(chosen)} of {len(files)}: {changed[chosen[0]][0]}", files | {
            n: content for n, (_, content) in changed.items()
        }
    if draw < 0.7 and len(files) > 1:
        said = rng.choice(("removed", "copied", "emptied"))
        rest = {n: c for n, c in files.items() if n != name}
        return f"{name} {said}", {
            "removed": rest,
            "copied": files | {"s/copy.dcm": files[name]},
            "emptied": files | {name: b""},
        }[said]
    said, content = damage(rng, files[name][128:], len(files[name]) - 128 - 200)
    return f"{name}: {said}", files | {name: files[name][:128] + content}


def _with_element(rng: Random, keyword: str, content: bytes, resize: bool) -> tuple[str, bytes]:
    """Another value, length, VR or place for one element; inside sequences the length stays."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    vr = "OW" if keyword == "PixelData" else dictionary_VR(tag)
    mark = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    found = [m.start() for m in re.finditer(re.escape(mark), content)]
    if not found:
        new = rng.choice((b"1 ", b"-1", b"0 ", b"2 ", b"US", b"x "))
        at = content.find(b"\x20\x00\x0d\x00UI")  # before StudyInstanceUID
        return f"added {new!r}", content[:at] + mark + struct.pack("<H", len(new)) + new + content[at:]
    at = rng.choice(found)
    size = 4 if vr in _LONG else 2
    start = at + (12 if vr in _LONG else 8)
    (length,) = struct.unpack_from("<I" if size == 4 else "<H", content, start - size)
    old = content[start : start + length]
    kind = rng.choice(("value", "value", "value", "value", "drop", "length", "vr", "twice"))
    if kind == "drop" and resize:
        return kind, content[:at] + content[start + length :]
    if kind == "twice" and resize:
        return kind, content[:at] + content[at : start + length] * 2 + content[start + length :]
    if kind == "length":
        new = binary_field(rng, "H", struct.pack("<H", min(length, 65535)), "<")
        return f"length {new.hex()}", content[: start - size] + new + content[start - size + 2 :]
    if kind == "vr":
        new = rng.choice((b"LO", b"UN", b"OB", b"FD", b"zz", b"DS"))
        return f"VR {new!r}", content[: at + 4] + new + content[at + 6 :]
    if vr == "US":
        new = binary_field(rng, "H", old, "<")
    elif vr == "OW":
        new = damage(rng, old)[1] if resize else old[::-1]
    else:
        parts = old.decode("latin-1").rstrip("\0 ").split("\\")
        word = rng.choice((*WORDS, parts[0] + "1", "LOCALIZER", "CT", "MR", "-" + parts[0], "1.2.840.10008.1.2.2"))[:60]
        parts[rng.randrange(len(parts))] = word.replace("\ud800", "\xff").replace("\uff13", "\xb3")
        new = "\\".join(parts).replace("." if rng.random() < 0.1 else "\0", ",").encode("latin-1")
    new += b" " * (len(new) % 2)
    if not resize:
        new = new[:length].ljust(length)
    return f"{old[:30]!r} -> {new[:30]!r}", content[: start - size] + struct.pack(
        "<I" if size == 4 else "<H", len(new)
    ) + new + content[start + length :]


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def sample_zip(rng: Random) -> dict[str, bytes]:
    return {"x.zip": zipped(sample(rng, "folder"))}


def mutate_zip(rng: Random, files: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    content = files["x.zip"]
    if rng.random() < 0.3:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            said, inner = mutate(rng, {name: archive.read(name) for name in archive.namelist()})
        return said, {"x.zip": zipped(inner)}
    part = content[content.rfind(b"PK\x01\x02", 0, len(content) - 300) :] if rng.random() < 0.5 else content
    said, changed = damage(rng, part)
    return f"archive: {said}", {"x.zip": content[: len(content) - len(part)] + changed}


def meaning(folder: Path) -> Meaning:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contents = list(_contents(folder))
        try:
            return _volume(contents)
        except Undefined:
            raise
        except Exception as error:
            raise Undefined(f"{type(error).__name__}: {error}") from error


def _contents(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".zip":
            try:
                with zipfile.ZipFile(path) as archive:
                    yield from [archive.read(member) for member in archive.infolist()]
            except Exception as error:
                raise Undefined(f"zip: {error}") from error
        elif path.is_file():
            yield path.read_bytes()


def _volume(contents: list[bytes]) -> Meaning:
    doubts: list[str] = []
    frames = [frame for content in contents for frame in _frames(content, doubts)]
    need(len(frames) > 1, "a single slice")
    need(
        len({frame.shared for frame in frames}) == 1, "slices of different series, sizes, types or frames of reference"
    )
    first = frames[0]
    row, column = first.orientation[:3], first.orientation[3:]
    lengths = [np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column]
    need(np.abs(lengths).max() < 1.5e-3, "rows and columns at no right angle")
    need(first.spacing.min() > 0, "impossible PixelSpacing")
    for frame in frames:
        need(np.abs(frame.orientation - first.orientation).max() < 1e-3, "several orientations")
        need(np.allclose(frame.spacing, first.spacing, rtol=1e-4), "several pixel spacings")
    normal = np.cross(row, column)
    frames.sort(key=lambda frame: float(frame.position @ normal))
    named = [frame.instance for frame in frames if frame.instance[0]]
    if len(set(named)) < len(named):  # byte-identical copies are one image
        doubts.append("an image twice")
        frames = [f for i, f in enumerate(frames) if not (i and f.instance[0] and f.instance == frames[i - 1].instance)]
    places = np.array([frame.position for frame in frames])
    step = (places[-1] - places[0]) / (len(frames) - 1)
    across = step @ normal
    need(across > 0.01, "slices in one place")
    off = np.abs(places - places[0] - np.arange(len(frames))[:, None] * step).max()
    need(off < min(0.15, 0.15 * across), "uneven steps")
    if np.linalg.norm(step - across * normal) > 1.5e-3 * np.linalg.norm(step):
        doubts.append("tilted")
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([row * first.spacing[1], column * first.spacing[0], step])
    affine[:3, 3] = places[0]
    values = [frame.pixels for frame in frames if frame.pixels is not None]
    shape = (*first.size, len(frames))
    whole_values = np.stack(values).T if len(values) == len(frames) else None
    return Meaning(shape, LPS_TO_RAS @ affine, whole_values, sorted(set(doubts)))


def _frames(content: bytes, doubts: list[str]) -> Iterator[_Frame]:
    if content[128:132] != b"DICM":
        doubts.append("no mark of DICOM")
    data = pydicom.dcmread(io.BytesIO(content), force=True)
    count = whole(_words(data, "NumberOfFrames")[0]) if "NumberOfFrames" in data else 1
    enhanced = "PerFrameFunctionalGroupsSequence" in data
    sound = count > 0
    count = max(count, 1)
    need(enhanced or count == 1, "frames without a place")
    need(not enhanced or len(data.PerFrameFunctionalGroupsSequence) == count, "frames and their description differ")
    size = (_unsigned(data, "Columns"), _unsigned(data, "Rows"))
    need(min(size) > 0, "no pixels")
    modality = (_words(data, "Modality") or [""])[0].strip()
    need("LOCALIZER" not in "\\".join(_words(data, "ImageType")).upper().split("\\"), "a localizer")
    keys = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID")
    uids = tuple("\\".join(_words(data, key)).strip(" \0") for key in keys)
    if modality == "MR" and (_words(data, "PhotometricInterpretation") or [""])[0].strip() == "MONOCHROME1":
        doubts.append("MONOCHROME1")
    for k in range(count):
        groups = [data]
        if enhanced:
            groups = [data.PerFrameFunctionalGroupsSequence[k], *data.get("SharedFunctionalGroupsSequence", [])]

        def part(sequence: str, groups: list[Dataset] = groups) -> Dataset:
            return next((g[sequence].value[0] for g in groups if g.get(sequence)), Dataset()) if enhanced else data

        place = [
            _decimals(part("PlanePositionSequence"), "ImagePositionPatient", 3),
            _decimals(part("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
            _decimals(part("PixelMeasuresSequence"), "PixelSpacing", 2),
        ]
        need(all(p is not None for p in place), "no place in space")
        stack = "\\".join(_words(part("FrameContentSequence"), "StackID"))
        try:
            need(sound, "impossible NumberOfFrames")
            pixels = _rescaled(
                _pixels(data, count, doubts)[k], part("PixelValueTransformationSequence"), modality, doubts
            )
        except Exception:
            pixels = None  # the header tells a place all the same
        instance = ("\\".join(_words(data, "SOPInstanceUID")), k)
        yield _Frame(*place, pixels, size, (*uids, modality, stack, str(size)), instance)  # type: ignore[arg-type]


def _rescaled(stored: np.ndarray, rescale: Dataset, modality: str, doubts: list[str]) -> np.ndarray:
    need("ModalityLUTSequence" not in rescale, "a table of values")
    slope, intercept = (_decimals(rescale, key, 1) for key in ("RescaleSlope", "RescaleIntercept"))
    need(modality != "CT" or (slope is not None and intercept is not None), "CT without Hounsfield units")
    unit = "\\".join(_words(rescale, "RescaleType")).strip(" \0")
    need(modality != "CT" or unit in ("", "HU", "HU_MOD", "US"), "CT in another unit")
    if (slope is None) != (intercept is None) or (modality == "CT" and unit == "US"):
        doubts.append("half a rescale, or an unspecified unit")
    need(slope is None or slope[0] != 0, "RescaleSlope 0")
    return stored * (1 if slope is None else slope[0]) + (0 if intercept is None else intercept[0])


def _pixels(data: Dataset, count: int, doubts: list[str]) -> np.ndarray:
    """(frames, rows, columns): the stored bits of each cell, PS3.5 section 8."""
    syntax = str(data.file_meta.TransferSyntaxUID) if "TransferSyntaxUID" in getattr(data, "file_meta", {}) else ""
    need(syntax in ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", ""), "another encoding")
    rows, columns, allocated, bits, high, signed = (
        _unsigned(data, key)
        for key in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    )
    need(_unsigned(data, "SamplesPerPixel") == 1, "several values per pixel")
    need((_words(data, "PhotometricInterpretation") or [""])[0].strip() in ("MONOCHROME1", "MONOCHROME2"), "color")
    need(rows > 0 and columns > 0 and allocated in (8, 16, 32), "impossible size")
    need(0 < bits <= allocated and high == bits - 1 and signed in (0, 1), "impossible bits")
    content = _raw(data, "PixelData")
    needed = rows * columns * count * allocated // 8
    need(content is not None and len(content) >= needed, "pixels cut short")
    assert content is not None
    if len(content) > needed + needed % 2:
        doubts.append("more pixels than Rows, Columns and frames say")
    cells = np.frombuffer(content, f"<u{allocated // 8}", rows * columns * count).astype(np.int64) & ((1 << bits) - 1)
    if signed:
        cells = np.where(cells >> (bits - 1), cells - (1 << bits), cells)
    return cells.reshape(count, rows, columns).astype(np.float64)


def _raw(data: Dataset, keyword: str) -> bytes | None:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    if tag not in data:
        return None
    value = data.get_item(tag).value
    return (
        value
        if isinstance(value, bytes)
        else b""
        if value is None
        else "\\".join(map(str, value if isinstance(value, list | pydicom.multival.MultiValue) else [value])).encode(
            "latin-1", "replace"
        )
    )


def _words(data: Dataset, keyword: str) -> list[str]:
    value = _raw(data, keyword)
    return [] if value is None else value.decode("latin-1").rstrip("\0 ").split("\\")


def _decimals(data: Dataset, keyword: str, count: int) -> np.ndarray | None:
    words = _words(data, keyword)
    return numbers(" ".join(words), count) if any(word.strip() for word in words) else None


def _unsigned(data: Dataset, keyword: str) -> int:
    value = data[keyword].value
    need(isinstance(value, int) and value >= 0, f"no {keyword}")
    return int(value)
