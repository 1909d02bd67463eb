"""The geometry of a series: from its headers to one stack on one grid, or every reason why it is none.

Words used here. *Slice*: one image; an enhanced multi-frame object holds many. *Normal*: the direction across the
slices, row direction x column direction. *Step*: distance between neighboring slices along the normal. Places are LPS
mm (PS3.3 C.7.6.2), the grid is RAS+.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medcyclegan.errors import InputError, few
from medcyclegan.io.dicom.files import Object, Place, count, shown
from medcyclegan.io.dicom.numbers import numbers_or_none, rescale_value
from medcyclegan.io.grid import RAS_FROM_LPS, SAME_MM, SHEAR_COSINE, UNIT_LENGTH, Grid
from medcyclegan.io.plausible import refuse_impossible_geometry

# A slice may lie this far from where even steps put it: positions rounded to one decimal are off by 0.05 mm.
_OFF_MM = 0.1
_OFF_STEPS = 0.1
_SAME_DIRECTION = 2e-4  # 0.05 mm at 250 mm
# What tells apart images of the same place: echoes, time points, diffusion weightings, Dixon images.
_REPETITIONS = (
    *("EchoTime", "ImageType", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime"),
    *("AcquisitionNumber", "AcquisitionTime"),
)


@dataclass(frozen=True, eq=False)
class Slice:
    """One image with what decides its place and its values; None where the header does not say."""

    place: Place
    header: Dataset
    frame: int
    enhanced: bool
    modality: str
    position: npt.NDArray[np.float64] | None  # LPS mm, of the first pixel's center
    orientation: npt.NDArray[np.float64] | None  # direction of a row, then of a column
    spacing: npt.NDArray[np.float64] | None  # between rows, between columns, mm
    slope: float | None
    intercept: float | None
    unit: str  # RescaleType
    stack: str  # StackID
    repetition: dict[str, str]

    @property
    def label(self) -> str:
        return f"{self.place.name}, frame {self.frame + 1}" if self.enhanced else self.place.name


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order, their grid, the shifts to apply, and notes.

    `shift` is (slices, 2), where a tilted gantry has sheared the stack: how far each slice starts along the rows and
    columns of `grid`, in pixels.
    """

    slices: list[Slice]
    grid: Grid
    shift: npt.NDArray[np.float64] | None
    notes: list[str]


def slices_of(item: Object, name: str) -> Iterator[Slice]:
    """The slice of a classic object, or every frame of an enhanced multi-frame one; `name` is for messages."""
    header = item.header
    enhanced = "PerFrameFunctionalGroupsSequence" in header
    if not enhanced and item.frames > 1:
        raise InputError(
            f"{name}: {item.place.name} has {item.frames} frames and does not say where each of them lies.",
            "Export the series as single images or as enhanced multi-frame DICOM.",
        )
    if enhanced and len(header.PerFrameFunctionalGroupsSequence) != item.frames:
        raise InputError(
            f"{name}: {item.place.name} has {item.frames} frames and describes "
            f"{len(header.PerFrameFunctionalGroupsSequence)}.",
            "Export it again.",
        )
    for frame in range(item.frames):

        def part(sequence: str, frame: int = frame) -> Dataset:
            return _functional_group(header, frame, sequence) if enhanced else header

        rescale, content = part("PixelValueTransformationSequence"), part("FrameContentSequence")
        if "ModalityLUTSequence" in rescale:
            raise InputError(
                f"{name}: {item.place.name} maps its values through a table (Modality LUT), which is not read.",
                "Export it with RescaleSlope and RescaleIntercept.",
            )
        parts = [part("MREchoSequence"), content, part("MRDiffusionSequence"), part("MRImageFrameTypeSequence"), header]
        repetition = {
            keyword: value for keyword in _REPETITIONS for p in parts[::-1] if (value := str(p.get(keyword, "")))
        }
        if enhanced:
            repetition |= {"frame index": str(content.get("DimensionIndexValues", ""))}
        slope, intercept = (
            rescale_value(rescale, keyword, item.place, name) for keyword in ("RescaleSlope", "RescaleIntercept")
        )
        yield Slice(
            place=item.place,
            header=header,
            frame=frame,
            enhanced=enhanced,
            modality=str(header.get("Modality") or ""),
            position=numbers_or_none(part("PlanePositionSequence"), "ImagePositionPatient", 3),
            orientation=numbers_or_none(part("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
            spacing=numbers_or_none(part("PixelMeasuresSequence"), "PixelSpacing", 2),
            slope=slope,
            intercept=intercept,
            unit=str(rescale.get("RescaleType") or ""),
            stack=str(content.get("StackID", "")),
            repetition=repetition,
        )


def stacked(slices: list[Slice], name: str) -> Stack:
    """Sort the slices of one series and find their grid; `name` is for messages.

    Raises:
        InputError: the slices differ in what a stack shares, lie in the same place, or are not in even steps.
    """
    problems = [*_unplaced(slices), *_unlike(slices)]
    if problems:
        raise InputError(
            f"{name}: the images do not make up one volume: {'; '.join(problems)}.",
            "Export each scan, orientation and stack as a series of its own.",
        )
    if len(slices) < 2:
        raise InputError(f"{name} holds a single slice.", "Give the folder that holds the whole series.")
    row, column, spacing = _axes(slices[0], name)
    normal = np.cross(row, column)
    positions = np.array([s.position for s in slices], dtype=np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[int(k)] for k in order], positions[order]
    across = (positions - positions[0]) @ normal
    sideways = (positions - positions[0]) @ np.stack([row, column], axis=1)
    angle = float(np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), across[-1])))
    sheared = np.sin(np.radians(angle)) > SHEAR_COSINE
    what = "the gantry was tilted" if slices[0].modality == "CT" else "the stack of slices is sheared"
    tilt = f"{what} by {angle:.1f} degrees" if sheared else ""
    _refuse_repeated(slices, np.diff(across), name)
    _refuse_uneven(slices, across, name, tilt)
    even = np.arange(len(slices)) / (len(slices) - 1)
    if (off := float(np.linalg.norm(sideways - even[:, None] * sideways[-1], axis=1).max())) > _OFF_MM:
        raise InputError(
            f"{name}: the slices are shifted sideways against each other, by up to {off:.2f} mm.",
            "Export the series again with its slices in line.",
        )
    notes = [*_missing_numbers(slices), *_doubts(slices[0], angle)]
    columns, rows = int(slices[0].header.Columns), int(slices[0].header.Rows)
    origin, shift, step = positions[0], None, (positions[-1] - positions[0]) / (len(slices) - 1)
    if sheared:
        pixels = sideways / spacing[::-1]
        start = np.floor(pixels.min(axis=0) + 1e-6)
        columns, rows = (np.array([columns, rows]) + np.ceil(np.ptp(pixels, axis=0) - 1e-6)).astype(int).tolist()
        origin = origin + start[0] * spacing[1] * row + start[1] * spacing[0] * column
        # Without rounding, an edge would count as outside by the last digit.
        shift, step = np.round(pixels - start, 6), float(across[-1] / (len(slices) - 1)) * normal
        notes.append(
            f"{tilt}; every slice was shifted within its own plane by linear interpolation until the axes were "
            "orthogonal."
        )
    lps = np.eye(4)
    lps[:3] = np.stack([row * spacing[1], column * spacing[0], step, origin], axis=1)
    refuse_impossible_geometry((columns, rows, len(slices)), lps, name)
    return Stack(slices, Grid((columns, rows, len(slices)), RAS_FROM_LPS @ lps), shift, notes)


def _axes(first: Slice, name: str) -> tuple[npt.NDArray[np.float64], ...]:
    """Direction of a row and of a column, orthonormal, and the distances between rows and between columns, mm."""
    assert first.orientation is not None and first.spacing is not None
    row, column = first.orientation[:3], first.orientation[3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column), 1 + abs(row @ column)])
    if np.abs(lengths - 1).max() > UNIT_LENGTH or first.spacing.min() <= 0:
        raise InputError(
            f"{name}: rows and columns have directions or distances that cannot be (ImageOrientationPatient, "
            "PixelSpacing).",
            "Export the series again.",
        )
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column), first.spacing


def _doubts(first: Slice, angle: float) -> Iterator[str]:
    """Notes where the header contradicts its positions, which give a tilt of `angle` degrees."""
    said = numbers_or_none(first.header, "GantryDetectorTilt", 1)
    if first.modality == "CT" and said is not None and abs(abs(float(said[0])) - angle) > 1 and abs(said[0]) > 0.5:
        yield (
            f"the header gives a gantry tilt of {abs(float(said[0])):.1f} degrees and the positions one of "
            f"{angle:.1f}; the positions are used."
        )
    if first.modality == "MR" and str(first.header.get("PhotometricInterpretation")) == "MONOCHROME1":
        yield (
            "MONOCHROME1: viewers show its low values bright. They are used as stored; see that bright tissue is high."
        )


def _functional_group(header: Dataset, frame: int, sequence: str) -> Dataset:
    """The one item of a functional group of a frame, or of all frames (PS3.3 C.7.6.16); empty where there is none."""
    for groups in (
        header.PerFrameFunctionalGroupsSequence[frame : frame + 1],
        header.get("SharedFunctionalGroupsSequence"),
    ):
        if groups and groups[0].get(sequence):
            item = groups[0][sequence].value[0]
            return item if isinstance(item, Dataset) else Dataset()
    return Dataset()


def _unplaced(slices: Sequence[Slice]) -> Iterator[str]:
    """Slices without a complete position."""
    sizes = [[s.header.get(keyword) for keyword in ("Rows", "Columns")] for s in slices]
    for what, usable in (
        ("a usable ImagePositionPatient", [s.position is not None for s in slices]),
        ("a usable ImageOrientationPatient", [s.orientation is not None for s in slices]),
        ("a usable PixelSpacing", [s.spacing is not None for s in slices]),
        ("usable Rows and Columns", [all(isinstance(n, int) and n > 0 for n in size) for size in sizes]),
    ):
        if without := [s.label for s, there in zip(slices, usable, strict=True) if not there]:
            yield f"{count(len(without), 'image')} without {what} ({few(without)}; cut short?)"


def _unlike(slices: Sequence[Slice]) -> Iterator[str]:
    """Attributes that must be the same in every slice of a stack and are not."""
    turns: list[npt.NDArray[np.float64]] = []
    planes: list[str] = []
    for s in slices:
        if s.orientation is None:
            continue
        alike = [i for i, known in enumerate(turns) if np.abs(known - s.orientation).max() <= _SAME_DIRECTION]
        if not alike:
            turns.append(s.orientation)
            alike = [len(turns) - 1]
        normal = np.cross(s.orientation[:3], s.orientation[3:])
        planes.append(f"{('sagittal', 'coronal', 'axial')[int(np.abs(normal).argmax())]} (direction {alike[0] + 1})")
    if len(turns) > 1:
        yield f"mixed orientations ({_tally(planes)})"
    for words, values in (
        ("stacks", [s.stack for s in slices]),
        ("image sizes", [f"{s.header.get('Columns')} x {s.header.get('Rows')}" for s in slices]),
        (
            "pixel spacings",
            ["unknown" if s.spacing is None else " x ".join(f"{v:.4g}" for v in s.spacing) + " mm" for s in slices],
        ),
        ("modalities", [s.modality for s in slices]),
        ("units", [s.unit or "no RescaleType" for s in slices]),
    ):
        if len(set(values)) > 1:
            yield f"several {words} ({_tally(values)})"
    for words, keyword in (("patients", "PatientID"), ("studies", "StudyInstanceUID")):
        if (number := len({str(s.header.get(keyword, "")) for s in slices})) > 1:
            yield f"images of {number} {words}"
    frames = {str(s.header.get("FrameOfReferenceUID", "")) for s in slices}
    if len(frames) > 1:
        yield f"{len(frames)} frames of reference (the patient may have moved between them)"


def _refuse_repeated(slices: Sequence[Slice], steps: npt.NDArray[np.float64], name: str) -> None:
    repeated = np.flatnonzero(steps < SAME_MM)
    if not len(repeated):
        return
    here, there = slices[repeated[0]], slices[repeated[0] + 1]
    if not here.enhanced and here.header.get("SOPInstanceUID") == there.header.get("SOPInstanceUID"):
        more = f", and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        raise InputError(
            f"{name}: the same image is there twice: {here.label} and {there.label}{more}.",
            "Keep one copy of each.",
        )
    keywords = {*here.repetition, *there.repetition}
    differing = sorted(k for k in keywords if here.repetition.get(k) != there.repetition.get(k))
    because = f" (they differ in {', '.join(differing)})" if differing else ""
    raise InputError(
        f"{name}: several images lie in the same place, for example {here.label} and {there.label}{because}: the "
        "series holds more than one volume (echoes, time points or other repetitions).",
        "Export one volume per series.",
    )


def _refuse_uneven(slices: Sequence[Slice], across: npt.NDArray[np.float64], name: str, tilt: str) -> None:
    steps = np.diff(across)
    even = np.linspace(0, across[-1], len(slices))
    off = float(np.abs(across - even).max())
    usual = float(np.median(steps))
    if off <= min(_OFF_MM, _OFF_STEPS * usual):
        return
    tilted = f"; besides, {tilt}" if tilt else ""
    ratios = steps / usual
    whole = np.rint(ratios)
    if np.abs(ratios - whole).max() < 0.1 and whole.min() == 1:
        gaps = np.flatnonzero(whole > 1)
        after = few([f"{slices[int(k)].label} ({count(int(whole[k]) - 1, 'slice')})" for k in gaps])
        raise InputError(
            f"{name}: {count(int((whole - 1).sum()), 'slice')} missing: the step is {usual:.2f} mm, but larger after "
            f"{after}{tilted}.",
            "Copy or export the whole series again.",
        )
    raise InputError(
        f"{name}: uneven slice steps ({_tally([f'{step:.2f} mm' for step in steps])}){tilted}. Slices are missing or "
        "the step was changed during the scan.",
        "Export or reconstruct the series with even steps, or split it into parts of one step each.",
    )


def _missing_numbers(slices: Sequence[Slice]) -> list[str]:
    """Notes on gaps in the numbering: missing slices that positions do not reveal, such as every second one."""
    if slices[0].enhanced:
        return []
    numbers = [numbers_or_none(s.header, "InstanceNumber", 1) for s in slices]
    known = sorted({int(n[0]) for n in numbers if n is not None})
    if len(known) != len(slices):
        return []
    notes = []
    if known[0] > 1:
        notes.append(f"the images are numbered from {known[0]}; look whether the first ones are missing.")
    missing = known[-1] - known[0] + 1 - len(known)
    if not missing:
        return notes
    return [
        *notes,
        f"the images are numbered {known[0]} to {known[-1]} with {count(missing, 'number')} left out, though the "
        "steps are even; look whether the series is complete.",
    ]


def _tally(values: Sequence[str]) -> str:
    return ", ".join(f"{count} of {shown(value) or 'none'}" for value, count in Counter(values).most_common(4))
