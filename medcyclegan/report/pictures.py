"""The pictures of a whole cohort: every case is opened once, drawn, and counted into the histograms.

The worst, the median and the best case get the most slices; all cases together take a bounded number of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from medcyclegan.errors import InputError
from medcyclegan.evaluation.columns import heading
from medcyclegan.evaluation.results import Case, Results
from medcyclegan.progress import Progress
from medcyclegan.report.baselines import Baselines
from medcyclegan.report.density import HuDensity
from medcyclegan.report.display import ERROR_LIMIT, window_words
from medcyclegan.report.page import CaseSection, Slide, Stack, cell
from medcyclegan.report.viewer import MR, UNCERTAINTY, VISIBLE_ABOVE_HU, CaseView, Column, PlaneView, case_view
from medcyclegan.report.volumes import CaseVolumes, VolumeFolder, open_case

# All pictures of slices together. As text they take 4/3 of it; with plots and words a report stays below 15 MB.
PICTURE_BYTES = 9_000_000
_CASE_BYTES = 1_200_000  # more than this per case is not worth mailing
_OPENED_WEIGHT = 3  # the cases that are open at first get more slices than the others
_SMALLEST_CASE = 15_000  # less is no picture


@dataclass(frozen=True)
class Pictures:
    """Pictures and pooled values of a cohort's volumes.

    Attributes:
        sections: one per case that could be scored, those that stand out first, then in the order of the table.
        caption: how to read the pictures; empty if there are none.
        density: of all cases that could be opened.
        baselines: of the same cases.
        not_shown: case to why there is no picture of it.
        anchors: case to where it is in the page.
    """

    sections: tuple[CaseSection, ...]
    caption: str
    density: HuDensity
    baselines: Baselines
    not_shown: Mapping[str, str]
    anchors: Mapping[str, str]


def standing_out(results: Results) -> dict[str, str]:
    """The worst, the median and the best case by the score that orders them: case to the word for it."""
    by = results.order_by
    if by is None:
        return {}
    about = heading(by)
    badness = {"higher": lambda value: -value, "zero": abs}.get(str(about.better), float)
    scores = {case.name: case.scores.get(by, math.nan) for case in results.cases}
    ranked = sorted((badness(value), name) for name, value in scores.items() if math.isfinite(value))
    names = [name for _, name in ranked]
    if len(names) < 2:
        return dict.fromkeys(names, "only case")
    # Of an even number, the median is the worse of the two in the middle; of two cases there is none.
    places = {"worst": -1, "median": len(names) // 2, "best": 0} if len(names) > 2 else {"worst": -1, "best": 0}
    return {names[place]: f"{word} {about.label}" for word, place in places.items()}


def draw_pictures(
    results: Results,
    source: VolumeFolder | None,
    uncertainty: VolumeFolder | None,
    window: tuple[float, float],
    progress: Progress,
) -> Pictures:
    """Open and draw every case that was scored, one after the other.

    Args:
        results: with where the volumes are.
        source: the MR volumes; None takes those that the results name.
        uncertainty: the uncertainty maps, if any.
        window: HU drawn black and white.
        progress: shows the cases as they are done.
    """
    badges = standing_out(results)
    scored = {case.name: case for case in results.scored}
    order = [*badges, *(name for name in scored if name not in badges)]
    anchors = {name: f"case-{number}" for number, name in enumerate(order, start=1)}
    weights = {name: _OPENED_WEIGHT if name in badges else 1 for name in order}
    density, baselines = HuDensity(), Baselines(_bone_above(results))
    sections, not_shown = [], {}
    volumes: CaseVolumes | None
    left_bytes, left_weight = PICTURE_BYTES, sum(weights.values())
    for name in progress.track(order, len(order), "Drawing"):
        case = scored[name]
        allowed = min(_CASE_BYTES, left_bytes * weights[name] // left_weight)
        left_weight -= weights[name]
        view: CaseView | None = None
        notes: tuple[str, ...] = ()
        try:
            volumes = open_case(case, results.files.get(name), source=source, uncertainty=uncertainty)
            notes = volumes.notes
            density.add(volumes.ct, volumes.sct, volumes.inside)
            baselines.add(volumes.ct, volumes.inside, volumes.mr)
            if allowed < _SMALLEST_CASE:
                raise InputError(f"{len(order)} cases are too many for pictures of all in one page")
            view = case_view(volumes, window, allowed)
        except InputError as error:
            not_shown[name] = str(error)
            notes = (f"No pictures: {error}.", *notes)
        else:
            left_bytes -= view.bytes
            if view.tilt_degrees > 1:
                tilt = f"The slices run along the volume's axes, {view.tilt_degrees:.0f}° oblique to the patient's."
                notes = (*notes, tilt)
        volumes = None  # Before the next ones are opened.
        notes = (*notes, *([case.notes] if case.notes else []))
        columns = () if view is None else view.columns
        stacks = () if view is None else tuple(_stack(name, plane, columns) for plane in view.planes)
        badge = badges.get(name, "")
        sections.append(CaseSection(anchors[name], name, badge, _scores(results, case), columns, stacks, notes))
    shown = {column.name for section in sections for column in section.columns}
    caption = _caption(shown, window, uncertainty) if shown else ""
    return Pictures(tuple(sections), caption, density, baselines, not_shown, anchors)


def _bone_above(results: Results) -> float | None:
    """HU above which the evaluation called a voxel bone, where it recorded that."""
    tissues = results.summary.get("tissues")
    limits = tissues.get("bone") if isinstance(tissues, dict) else None
    low = limits[0] if isinstance(limits, list) and limits else None
    return float(low) if isinstance(low, int | float) else None


def _stack(case: str, plane: PlaneView, columns: Sequence[Column]) -> Stack:
    name, coordinate = plane.plane.name, plane.plane.coordinate
    names = ", ".join(column.name for column in columns)
    slides = []
    for index, picture in enumerate(plane.pictures):
        place = f"{coordinate} {picture.position_mm:+.0f} mm".replace("-", "−")
        words = [f"slice {picture.axis} = {picture.number}", place]
        if picture.error_hu is not None:
            words.append(f"MAE {picture.error_hu:.0f} HU")
        if index == plane.worst:
            words.append("largest of this plane")
        alt = f"Case {case}, {name.lower()} slice at {place}: {names}"
        slides.append(Slide(picture.webp, " · ".join(words), alt))
    title = f"{name} slice of case {case}"
    return Stack(name, title, tuple(slides), plane.start, plane.width, plane.height, plane.plane.letters)


def _scores(results: Results, case: Case) -> str:
    shown: list[str] = [name for name in ("mae", "me", "psnr", "ssim", "ms_ssim") if name in results.columns]
    shown = shown or list(results.columns[:4])
    parts = []
    for name in shown:
        about = heading(name)
        parts.append(f"{about.label} {cell(case.scores[name])}" + (f" {about.unit}" if about.unit else ""))
    return " · ".join(parts)


def _caption(columns: Collection[str], window: tuple[float, float], uncertainty: VolumeFolder | None) -> str:
    """How to read the pictures, for the columns that are shown."""
    words = [
        f"Both CTs at {window_words(window)}.",
        f"Signed error: red where the synthetic CT is too dense, blue where it is not dense enough; colors end at "
        f"±{ERROR_LIMIT:g} HU; the black line is the border of the mask.",
    ]
    if MR in columns:
        words.append("MR in arbitrary units, from the 1st to the 99.5th percentile in the mask of each case.")
    if uncertainty is not None and UNCERTAINTY in columns:
        named = f" (named *{uncertainty.suffix})" if uncertainty.suffix else ""
        words.append(
            f"Uncertainty map: the values of the files given{named}, up to the 99.5th percentile in the mask of each "
            "case; in the maps of convert, high is doubtful."
        )
    words += [
        "Radiological display: the patient's right (R) is at the left of axial and coronal slices, anterior (A) at the "
        "left of sagittal ones.",
        f"In view is what is denser than {VISIBLE_ABOVE_HU:g} HU in either CT, or in the mask.".replace("-", "−"),
        "Of each plane, evenly spaced slices and the one with the largest mean error are shown; the sliders also "
        "follow the arrow keys. Magenta: no value. The pictures are compressed, for looking and not for measuring.",
    ]
    return " ".join(words)
