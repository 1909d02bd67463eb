"""The pictures of a whole cohort: every case is opened once, drawn, counted into the histograms, and forgotten.

The worst, the median and the best case get the most slices; all cases together take a bounded number of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medcyclegan.errors import InputError
from medcyclegan.progress import Progress
from medcyclegan.report.baselines import Baselines
from medcyclegan.report.density import HuDensity
from medcyclegan.report.display import ERROR_LIMIT, window_words
from medcyclegan.report.headings import heading
from medcyclegan.report.page import CaseSection, Slide, Stack, cell
from medcyclegan.report.results import Case, CaseFiles, Results
from medcyclegan.report.viewer import VISIBLE_ABOVE_HU, CaseView, PlaneView, case_view
from medcyclegan.report.volumes import VolumeFolder, open_case

# All pictures of slices together. As text they take 4/3 of it; with plots and words a report stays below 15 MB.
PICTURE_BYTES = 9_000_000
_CASE_BYTES = 1_200_000  # more than this per case is not worth mailing
_OPENED_WEIGHT = 3  # the cases that are open at first get more slices than the others
_SMALLEST_CASE = 15_000  # less is no picture


@dataclass(frozen=True)
class Pictures:
    """What the volumes of a cohort add to its scores.

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
    better = heading(by).better
    key = {"up": lambda value: -value, "zero": abs}.get(better, lambda value: value)
    ranked = sorted(
        (case for case in results.cases if math.isfinite(case.scores.get(by, math.nan))),
        key=lambda case: (key(case.scores[by]), case.name),
    )
    names = [case.name for case in ranked]
    label = heading(by).label
    if len(names) == 1:
        return {names[0]: "only case"}
    if len(names) == 2:
        return {names[1]: f"worst {label}", names[0]: f"best {label}"}
    if not names:
        return {}
    # Of an even number, the worse of the two in the middle.
    return {names[-1]: f"worst {label}", names[len(names) // 2]: f"median {label}", names[0]: f"best {label}"}


def draw_pictures(
    results: Results,
    source: VolumeFolder | None,
    trust: VolumeFolder | None,
    window: tuple[float, float],
    progress: Progress,
) -> Pictures:
    """Open and draw every case that was scored, one after the other.

    Args:
        results: with where the volumes are.
        source: the MR volumes; None takes those that the results name.
        trust: the trust maps, if any.
        window: HU drawn black and white.
        progress: shows the cases as they are done.
    """
    badges = standing_out(results)
    scored = {case.name: case for case in results.cases if not case.failed}
    order = [*badges, *(name for name in scored if name not in badges)]
    anchors = {name: f"case-{number}" for number, name in enumerate(order, start=1)}
    weights = {name: _OPENED_WEIGHT if name in badges else 1 for name in order}
    density, baselines = HuDensity(), Baselines(_bone_above(results))
    sections, not_shown = [], {}
    left_bytes, left_weight = PICTURE_BYTES, sum(weights.values())
    for name in progress.track(order, len(order), "Drawing"):
        case = scored[name]
        allowed = min(_CASE_BYTES, left_bytes * weights[name] // left_weight)
        left_weight -= weights[name]
        view: CaseView | None = None
        notes: tuple[str, ...] = ()
        try:
            view, notes = _opened(case, results, source, trust, window, allowed, density, baselines)
        except InputError as error:
            not_shown[name] = str(error)
        else:
            if view is None:
                not_shown[name] = f"{len(order)} cases are too many for pictures of all in one page"
            else:
                left_bytes -= view.bytes
        if name in not_shown:
            notes = (f"No pictures: {not_shown[name]}.", *notes)
        notes = (*notes, *([case.notes] if case.notes else []))
        stacks = () if view is None else tuple(_stack(name, plane, view) for plane in view.planes)
        badge = badges.get(name, "")
        sections.append(CaseSection(anchors[name], name, badge, _scores(results, case), view, stacks, notes))
    caption = _caption(sections, window, trust) if any(section.view for section in sections) else ""
    return Pictures(tuple(sections), caption, density, baselines, not_shown, anchors)


def _bone_above(results: Results) -> float | None:
    """HU above which the evaluation called a voxel bone, where it recorded that."""
    tissues = results.summary.get("tissues")
    limits = tissues.get("bone") if isinstance(tissues, dict) else None
    low = limits[0] if isinstance(limits, list) and limits else None
    return float(low) if isinstance(low, int | float) else None


def _opened(
    case: Case,
    results: Results,
    source: VolumeFolder | None,
    trust: VolumeFolder | None,
    window: tuple[float, float],
    allowed: int,
    density: HuDensity,
    baselines: Baselines,
) -> tuple[CaseView | None, tuple[str, ...]]:
    """Count and draw one case; a function of its own, so that its volumes are gone before the next are opened."""
    volumes = open_case(case, results.files.get(case.name, CaseFiles()), source=source, trust=trust)
    density.add(volumes.ct, volumes.sct, volumes.inside)
    baselines.add(volumes.ct, volumes.inside, volumes.mr)
    if allowed < _SMALLEST_CASE:
        return None, volumes.notes
    view = case_view(
        volumes.sct,
        volumes.ct,
        volumes.grid,
        volumes.inside,
        mr=volumes.mr,
        trust=volumes.trust,
        window=window,
        limit_bytes=allowed,
    )
    if view.tilt_degrees <= 1:
        return view, volumes.notes
    tilt = f"The slices run along the volume's axes, {view.tilt_degrees:.0f}° oblique to the patient's."
    return view, (*volumes.notes, tilt)


def _stack(case: str, plane: PlaneView, view: CaseView) -> Stack:
    name, coordinate = plane.plane.name, plane.plane.coordinate
    columns = ", ".join(column.name for column in view.columns)
    slides = []
    for index, picture in enumerate(plane.pictures):
        place = f"{coordinate} {picture.position_mm:+.0f} mm".replace("-", "−")
        words = [f"slice {picture.axis} = {picture.number}", place]
        if picture.error_hu is not None:
            words.append(f"MAE {picture.error_hu:.0f} HU")
        if index == plane.worst:
            words.append("largest of this plane")
        slides.append(
            Slide(picture.webp, " · ".join(words), f"Case {case}, {name.lower()} slice at {place}: {columns}")
        )
    return Stack(
        name,
        f"{name} slice of case {case}",
        tuple(slides),
        plane.start,
        plane.width,
        plane.height,
        plane.plane.letters,
    )


def _scores(results: Results, case: Case) -> str:
    shown: list[str] = [name for name in ("mae", "me", "psnr", "ssim", "ms_ssim") if name in results.columns]
    shown = shown or list(results.columns[:4])
    parts = []
    for name in shown:
        about = heading(name)
        parts.append(f"{about.label} {cell(case.scores[name])}" + (f" {about.unit}" if about.unit else ""))
    return " · ".join(parts)


def _caption(sections: Sequence[CaseSection], window: tuple[float, float], trust: VolumeFolder | None) -> str:
    """How to read the pictures, in words; of the columns that there are."""
    columns = {column.name for section in sections if section.view for column in section.view.columns}
    words = [
        f"Both CTs at {window_words(window)}.",
        f"Signed error: red where the synthetic CT is too dense, blue where it is not dense enough; colors end at "
        f"±{ERROR_LIMIT:g} HU; the black line is the border of the mask.",
    ]
    if "MR" in columns:
        words.append("MR in arbitrary units, from the 1st to the 99.5th percentile in the mask of each case.")
    if trust is not None and "Trust map" in columns:
        named = f" (named *{trust.suffix})" if trust.suffix else ""
        words.append(
            f"Trust map: the values of the files given{named}, up to the 99.5th percentile in the mask of each case; "
            "in the maps of convert, high is doubtful."
        )
    words += [
        "Radiological display: the patient's right (R) is at the left of axial and coronal slices, anterior (A) at the "
        "left of sagittal ones.",
        f"In view is what is denser than {VISIBLE_ABOVE_HU:g} HU in either CT, or in the mask.".replace("-", "−"),
        "Of each plane, evenly spaced slices and the one with the largest mean error are shown; the sliders also "
        "follow the arrow keys. Magenta: no value. The pictures are compressed, for looking and not for measuring.",
    ]
    return " ".join(words)
