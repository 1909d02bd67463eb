"""The report of an evaluation or of a training: read what it left, open its volumes one case at a time, write one page.

Numbers are those of the evaluation; nothing is graded again. What the volumes add are pictures, the joint histogram and
the Bland-Altman plot.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcyclegan.atomic import atomic_file
from medcyclegan.errors import InputError
from medcyclegan.evaluation.evaluate import CASES_FILE, SUMMARY_FILE
from medcyclegan.progress import Progress, Silent
from medcyclegan.report import plots
from medcyclegan.report.density import BIN_HU, HuDensity
from medcyclegan.report.display import CT_WINDOW, ERROR_LIMIT, window_words
from medcyclegan.report.headings import TISSUE_SCORES, TISSUES, heading, tissue_of
from medcyclegan.report.page import CaseSection, Cell, Page, Slide, Stack, Table, cell, render
from medcyclegan.report.results import Case, Results, holds_results, read_results
from medcyclegan.report.training_run import CURVES_FILE, TrainingRun, holds_run, read_run
from medcyclegan.report.viewer import VISIBLE_ABOVE_HU, CaseView, PlaneView, case_view
from medcyclegan.report.volumes import TRUST_SUFFIXES, VolumeFolder, files_of, open_case, require_any

# All pictures of slices together. As text they take 4/3 of it; with plots and words a report stays below 15 MB.
PICTURE_BYTES = 9_000_000
_CASE_BYTES = 1_200_000  # more than this per case is not worth mailing
_OPENED_WEIGHT = 3  # the cases that are open at first get more slices than the others
_SMALLEST_CASE = 15_000  # less is no picture
_SUFFIXES = (".html", ".htm")
_SILENT = Silent()

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the page.
        size: bytes.
        not_shown: case to why there is no picture of it.
    """

    path: Path
    size: int
    not_shown: Mapping[str, str]


def write_report(
    results: StrPath,
    output: StrPath,
    *,
    source: StrPath | None = None,
    trust: StrPath | None = None,
    window: tuple[float, float] = CT_WINDOW,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    baselines: Table | None = None,
    run: StrPath | None = None,
    progress: Progress = _SILENT,
) -> Report:
    """Write the page, atomically; one case is in memory at a time.

    Args:
        results: the folder of an evaluation (cases.csv and summary.json), or of a training (metrics.csv).
        output: the .html file; replaced if it exists.
        source: folder of the MR volumes, named as the cases; of an evaluation only.
        trust: folder of the trust maps, named as the cases, or with one of `_trust`, `_spread`, `_uncertainty` behind;
            of an evaluation only.
        window: HU shown black and white.
        title: heading of the page.
        facts: name to value: data, model, settings; shown before those of the results.
        baselines: the scores of trivial methods, to compare with.
        run: the folder of the training that made the model, shown at the end; of an evaluation only.
        progress: shows the cases as they are done.

    Returns:
        Where it is, how large it is, and which cases could not be shown.

    Raises:
        InputError: `results` is neither, or damaged; a folder holds no volume of any case; the window is empty; the
            output is no .html file.
    """
    folder, target = Path(results), Path(output)
    _check_target(target)
    if not (math.isfinite(window[0]) and math.isfinite(window[1]) and window[0] < window[1]):
        raise InputError(
            f"The window {window[0]:g} to {window[1]:g} HU is empty.", "Give LOW HIGH with LOW below HIGH."
        )
    kind = _kind(folder)
    not_shown: Mapping[str, str] = {}
    if kind == "training":
        if source is not None or trust is not None or run is not None:
            raise InputError(
                f"{folder} is a training; its report takes no source, trust maps or run.",
                "Leave them out, or give the folder of an evaluation.",
            )
        page = _training_page(read_run(folder), title, facts or {})
    else:
        found = read_results(folder)
        pictures = _pictures(
            found,
            _companions(found, source, "MR"),
            _companions(found, trust, "trust map", TRUST_SUFFIXES),
            window,
            progress,
        )
        not_shown = pictures.not_shown
        training = None if run is None else read_run(Path(run))
        page = _evaluation_page(found, pictures, window, title, facts or {}, baselines, training)
    text = render(page)
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Report(target, target.stat().st_size, not_shown)


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise InputError(f"The output {target} is a folder.", "Give a file such as report.html.")
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(f"The output {target} is no HTML file.", "Give a name that ends with .html.")


def _kind(folder: Path) -> str:
    if not folder.exists():
        raise InputError(f"There is no {folder}.", "Give the folder of an evaluation or of a training.")
    found = [name for name, holds in (("evaluation", holds_results), ("training", holds_run)) if holds(folder)]
    if len(found) == 1:
        return found[0]
    wanted = f"an evaluation holds {CASES_FILE} and {SUMMARY_FILE}, a training holds {CURVES_FILE}"
    if found:
        raise InputError(f"{folder} holds both an evaluation and a training ({wanted}).", "Move one of them.")
    raise InputError(
        f"{folder} holds neither the results of an evaluation nor a training: {wanted}.",
        "Give the folder after -o of 'medcyclegan evaluate' or 'medcyclegan train'.",
    )


def _companions(
    results: Results, folder: StrPath | None, kind: str, suffixes: tuple[str, ...] = ()
) -> VolumeFolder | None:
    if folder is None:
        return None
    volumes = VolumeFolder(Path(folder), kind, suffixes)
    require_any(volumes, [case.name for case in results.cases])
    return volumes


# Pictures ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pictures:
    sections: tuple[CaseSection, ...]
    density: HuDensity
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


def _pictures(
    results: Results,
    source: VolumeFolder | None,
    trust: VolumeFolder | None,
    window: tuple[float, float],
    progress: Progress,
) -> _Pictures:
    badges = standing_out(results)
    scored = {case.name: case for case in results.cases if not case.failed}
    order = [*badges, *(name for name in scored if name not in badges)]
    anchors = {name: f"case-{number}" for number, name in enumerate(order, start=1)}
    density = HuDensity()
    sections, not_shown = [], {}
    left_bytes = PICTURE_BYTES
    left_weight = sum(_OPENED_WEIGHT if name in badges else 1 for name in order)
    for name in progress.track(order, len(order), "Drawing"):
        case, weight = scored[name], _OPENED_WEIGHT if name in badges else 1
        allowed = min(_CASE_BYTES, left_bytes * weight // left_weight)
        left_weight -= weight
        view: CaseView | None = None
        notes: tuple[str, ...] = ()
        try:
            volumes = open_case(case, files_of(case, results.files), source=source, trust=trust)
        except InputError as error:
            not_shown[name] = str(error)
        else:
            notes = volumes.notes
            density.add(volumes.ct, volumes.sct, volumes.inside)
            if allowed >= _SMALLEST_CASE:
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
                left_bytes -= view.bytes
            else:
                not_shown[name] = f"{len(order)} cases are too many for pictures of all in one page"
        if name in not_shown:
            notes = (f"No pictures: {not_shown[name]}.", *notes)
        if view is not None and view.tilt_degrees > 1:
            notes += (f"The slices run along the volume's axes, {view.tilt_degrees:.0f}° oblique to the patient's.",)
        notes = (*notes, *([case.notes] if case.notes else []))
        stacks = () if view is None else tuple(_stack(name, plane, view) for plane in view.planes)
        badge = badges.get(name, "")
        sections.append(CaseSection(anchors[name], name, badge, _scores(results, case), view, stacks, notes))
    return _Pictures(tuple(sections), density, not_shown, anchors)


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


def _pictures_caption(sections: Sequence[CaseSection], window: tuple[float, float]) -> str:
    columns = {column.name for section in sections if section.view for column in section.view.columns}
    words = [
        f"Both CTs at {window_words(window)}.",
        f"Signed error: red where the synthetic CT is too dense, blue where it is not dense enough; colors end at "
        f"±{ERROR_LIMIT:g} HU; the black line is the border of the mask.",
    ]
    if "MR" in columns:
        words.append("MR in arbitrary units, from the 1st to the 99.5th percentile in the mask of each case.")
    if "Trust map" in columns:
        words.append("Trust map: the values of the given files, up to the 99.5th percentile in the mask of each case.")
    words += [
        "Radiological display: the patient's right (R) is at the left of axial and coronal slices, anterior (A) at the "
        "left of sagittal ones.",
        f"In view is what is denser than {VISIBLE_ABOVE_HU:g} HU in either CT, or in the mask.".replace("-", "−"),
        "Of each plane, evenly spaced slices and the one with the largest mean error are shown; the sliders also "
        "follow the arrow keys. Magenta: no value. The pictures are compressed, for looking and not for measuring.",
    ]
    return " ".join(words)


# Evaluation ----------------------------------------------------------------------------------------------------------


def _evaluation_page(
    results: Results,
    pictures: _Pictures,
    window: tuple[float, float],
    title: str | None,
    facts: Mapping[str, str],
    baselines: Table | None,
    training: TrainingRun | None,
) -> Page:
    shown = any(section.view for section in pictures.sections)
    density = pictures.density
    return Page(
        title=title or "Evaluation of synthetic CT",
        facts={**facts, **_facts(results)},
        alerts=_alerts(results, pictures),
        summary=_summary_table(results),
        distributions=_distributions(results),
        tissues=_tissue_table(results),
        baselines=baselines,
        densities=_densities(density) if density.voxels else (),
        no_densities="" if density.voxels else "No volumes could be opened, so there is no histogram.",
        per_case=_case_table(results, pictures.anchors),
        doubts=_grouped(results.cases),
        cases=pictures.sections,
        cases_caption=_pictures_caption(pictures.sections, window) if shown else "",
        **(_training_parts(training) if training is not None else {}),
    )


def _facts(results: Results) -> dict[str, str]:
    summary = results.summary
    failed = sum(case.failed for case in results.cases)
    n = len(results.cases) - failed
    facts = {"Cases": f"{n} scored" if not failed else f"{n} of {len(results.cases)} scored"}
    limits: Any = summary.get("range")
    span = f", {limits[0]:g} to {limits[1]:g} HU".replace("-", "−") if _is_numbers(limits) else ""
    facts["Protocol"] = f"{summary['protocol']}{span}" if isinstance(summary.get("protocol"), str) else "not recorded"
    mask = summary.get("mask")
    facts["Scored in"] = {"body": "the body of each reference", "given": "the masks given"}.get(
        mask if isinstance(mask, str) else "", str(mask) if mask else "not recorded"
    )
    if tissues := _tissue_words(summary.get("tissues")):
        facts["Tissues"] = tissues
    told = {"protocol", "range", "mask", "tissues", "n", "n_failed", "version"}
    for key, value in summary.items():
        if key not in told and isinstance(value, str | int | float | bool) and value != "":
            facts[key.replace("_", " ").capitalize()] = str(value)
    facts["Graded by"] = f"medcyclegan {summary['version']}" if "version" in summary else "not recorded"
    return facts


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(entry, int | float) for entry in value)


def _tissue_words(tissues: Any) -> str:
    """Thresholds in words, in whatever plain form they were recorded."""
    if not isinstance(tissues, dict):
        return ""
    parts = []
    for name, value in tissues.items():
        ends = value if isinstance(value, list) else [value]
        words = " to ".join(
            "…" if end is None else f"{end:g}" if isinstance(end, int | float) else str(end) for end in ends
        )
        parts.append(f"{name.replace('_', ' ')} {words} HU")
    return ", ".join(parts).replace("-", "−")


def _alerts(results: Results, pictures: _Pictures) -> tuple[str, ...]:
    alerts = [
        f"{case.name} could not be scored: {case.notes or 'no reason recorded'}"
        for case in results.cases
        if case.failed
    ]
    if missing := results.summary.get("missing"):
        names = [str(name) for name in missing] if isinstance(missing, list | dict) else [str(missing)]
        alerts.append(f"Missing, and in none of the numbers: {', '.join(names)}.")
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, why in pictures.not_shown.items():
        reasons[why].append(name)
    shown_of = len(pictures.sections)
    for why, names in reasons.items():
        who = "Any case" if len(names) == shown_of else ", ".join(names)
        alerts.append(f"No pictures of {who[0].lower() + who[1:] if who == 'Any case' else who}: {why}.")
    doubted = [case for case in pictures.sections if any("the table of scores says" in note for note in case.notes)]
    if doubted:
        names = [case.name for case in doubted]
        alerts.append(f"Volumes and scores contradict each other in {', '.join(names)}: see the notes there.")
    return tuple(alerts)


def _summary_table(results: Results) -> Table | None:
    if not results.statistics:
        return None
    rows: list[tuple[Cell, ...]] = []
    notes = []
    for name, found in results.statistics.items():
        n = found["n"]
        rows.append(
            (
                str(heading(name)),
                None if n is None else int(n),
                found["mean"],
                _interval(found["ci_low"], found["ci_high"]),
                found["sd"],
                found["median"],
                _interval(found["q1"], found["q3"]),
            )
        )
        if name in results.reasons:
            notes.append(f"{heading(name).label}: no mean ({results.reasons[name]}).")
        elif n is not None and n < sum(not case.failed for case in results.cases):
            notes.append(f"{heading(name).label}: {int(n)} cases have a value; the others are left out.")
    if all(row[3] is None for row in rows):
        notes.insert(0, "The evaluation recorded no intervals.")
    else:
        notes.insert(0, "Intervals: 95 %, of the mean over patients, as recorded by the evaluation.")
    notes.append(
        "In published comparisons the choice of registration alone moved MAE by 3 to 8 HU: smaller differences are not "
        "a model's merit."
    )
    columns = ("score", "n", "mean", "95 % interval", "SD", "median", "quartiles")
    return Table("Over the cases; arrows point to better", columns, tuple(rows), tuple(notes))


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{cell(low)} to {cell(high)}"


def _tissue_table(results: Results) -> Table | None:
    found = {parts: name for name in results.columns if (parts := tissue_of(name))}
    if not found:
        return None
    tissues = [tissue for tissue in TISSUES if any(parts[1] == tissue for parts in found)]
    scores = [score for score in TISSUE_SCORES if any(parts[0] == score for parts in found)]
    shares = [_mean(results, found[("share", tissue)]) for tissue in tissues if ("share", tissue) in found]
    total = math.nan if any(share is None for share in shares) else sum(share for share in shares if share is not None)
    # Shares come as parts or as percent; only their sum over all tissues can tell.
    percent = 100.0 if abs(total - 1) < 0.05 else 1.0 if abs(total - 100) < 5 else None
    columns, rows = ["tissue, by the reference's HU"], []
    for score in scores:
        about = heading(score)
        if score == "share":
            columns.append("share of the mask" + (" [%]" if percent else ""))
        else:
            columns += [str(about), "95 % interval"]
    for tissue in tissues:
        row: list[Cell] = [{"soft": "soft tissue"}.get(tissue, tissue)]
        for score in scores:
            name = found.get((score, tissue))
            value = None if name is None else _mean(results, name)
            if score == "share":
                row.append(None if value is None else value * (percent or 1))
            else:
                known = results.statistics.get(name, {}) if name else {}
                row += [value, _interval(known.get("ci_low"), known.get("ci_high"))]
        rows.append(tuple(row))
    notes = [] if _tissue_words(results.summary.get("tissues")) else ["The evaluation did not record the thresholds."]
    if len(tissues) < len(TISSUES):
        notes.append(f"No scores were recorded for: {', '.join(t for t in TISSUES if t not in tissues)}.")
    return Table("Mean over the cases, by tissue", tuple(columns), tuple(rows), tuple(notes))


def _mean(results: Results, name: str) -> float | None:
    """As the summary has it; of columns that it does not hold, over the cases with a finite value."""
    if name in results.statistics:
        return results.statistics[name]["mean"]
    values = [case.scores[name] for case in results.cases if math.isfinite(case.scores.get(name, math.nan))]
    return sum(values) / len(values) if values else None


def _distributions(results: Results) -> tuple[plots.Plot, str] | None:
    scores = []
    for name in results.statistics:
        if name.startswith("share_"):
            continue
        found = results.statistics[name]
        low, high = found["ci_low"], found["ci_high"]
        values = [case.scores[name] for case in results.cases if not case.failed]
        interval = None if low is None or high is None else (low, high)
        scores.append(plots.Distribution(str(heading(name)), values, found["mean"], interval))
    if not scores:
        return None
    caption = "Each point is a case (its height means nothing); box: quartiles and median. Diamond: mean" + (
        ", with its 95 % interval." if any(score.interval for score in scores) else "; no interval was recorded."
    )
    return plots.distributions(scores), caption


def _densities(density: HuDensity) -> tuple[tuple[str, plots.Plot, str], ...]:
    voxels = f"{density.voxels:,} voxels".replace(",", " ") + f" in the masks of {len(density.cases)} case(s)"
    low, high = density.limits_of_agreement
    beyond = ""
    if density.beyond:
        beyond = f" {100 * density.beyond / density.voxels:.2g} % lie beyond the axes and are counted in the last bins."
    return (
        (
            "Joint histogram",
            plots.joint_histogram(density),
            f"{voxels}, bins of {BIN_HU:g} HU, logarithmic. On the dashed line both agree.{beyond}",
        ),
        (
            "Bland-Altman",
            plots.bland_altman(density),
            f"The same voxels: bias {_signed(density.bias)} HU, limits of agreement {_signed(low)} to {_signed(high)} "
            "HU (bias ± 1.96 SD of the voxels' differences; neighboring voxels are not independent, so this is a spread "
            "and no confidence interval). Points: the cases at their own means.",
        ),
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _case_table(results: Results, anchors: Mapping[str, str]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (case.name, *(None if case.failed else case.scores[name] for name in results.columns)) for case in results.cases
    ]
    links = {index: anchors[case.name] for index, case in enumerate(results.cases) if case.name in anchors}
    notes = ("–: not scored.",) if any(case.failed for case in results.cases) else ()
    columns = ("case", *(str(heading(name)) for name in results.columns))
    return Table("A case's name leads to its pictures", columns, tuple(rows), notes, links)


def _grouped(cases: Sequence[Case]) -> tuple[str, ...]:
    """Notes of the evaluation, each once, with the cases that it concerns."""
    found: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        if not case.failed:
            for note in filter(None, (part.strip() for part in case.notes.split(";"))):
                found[note].append(case.name)
    return tuple(f"{', '.join(names)}: {note}" for note, names in found.items())


# Training ------------------------------------------------------------------------------------------------------------


def _training_page(run: TrainingRun, title: str | None, facts: Mapping[str, str]) -> Page:
    return Page(title=title or "Training", facts={**facts, **_run_facts(run)}, **_training_parts(run))


def _run_facts(run: TrainingRun) -> dict[str, str]:
    training, model = _part(run.config, "training"), _part(run.config, "model")
    done = next(iter(run.losses.values()))[0][-1]
    planned = training.get("steps")
    facts = {"Steps": f"{done:.0f} of {planned}" if planned else f"{done:.0f}"}
    if run.seconds is not None:
        facts["Time"] = f"{run.seconds:.0f} s since it was started or last resumed"
    if not run.config:
        facts["Settings"] = "config.yaml was not found"
    domains = [str(_part(_part(run.config, "domains"), name).get("name", "")) for name in ("a", "b")]
    if all(domains):
        facts["From, to"] = " to ".join(domains)
    for label, found, keys in (
        ("Objective", _part(run.config, "objective"), ("_target_", "cycle_weight", "identity_weight")),
        ("Generator", _part(model, "generator"), None),
        ("Discriminator", _part(model, "discriminator"), None),
        ("Preparation", _part(run.config, "preparation"), None),
        ("Patches", _part(run.config, "patches"), None),
        ("Optimization", training, ("batch_size", "learning_rate", "betas", "decay_start", "ema_decay", "precision")),
    ):
        words = [f"{key.strip('_').replace('_', ' ')} {found[key]}" for key in (keys or found) if key in found]
        if words:
            facts[label] = ", ".join(words).replace("target ", "", 1)
    if "seed" in run.config:
        facts["Seed"] = str(run.config["seed"])
    return facts


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _training_parts(run: TrainingRun) -> dict[str, Any]:
    """The training's fields of a page."""
    rows = [(f"validation {name}", *_course(*series, "mae" in name)) for name, series in run.validation.items()]
    rows += [(name.replace("_", " "), *_course(*series, None)) for name, series in run.losses.items()]
    curves = [
        ("Losses and speed, means over the steps between two lines of the log.", plots.curves(_named(run.losses)))
    ]
    notes = [
        "Adversarial losses have no value that is best: a generator and its discriminator hold each other in check."
    ]
    if run.validation:
        curves.insert(0, ("Validation on the pairs that were kept apart.", plots.curves(_named(run.validation))))
    else:
        notes.insert(0, "The run has no validation pairs, so nothing here measures the error of the result.")
    return {
        "training_table": Table(
            "Course of the training", ("value", "first", "last", "best", "best at step"), tuple(rows), tuple(notes)
        ),
        "curves": tuple(curves),
        "panels": _panels(run),
        "panels_caption": _panels_caption(run),
    }


def _course(steps: Sequence[float], values: Sequence[float], smaller: bool | None) -> tuple[Cell, ...]:
    """First, last and, where smaller is better, the best value and its step."""
    finite = [(value, step) for value, step in zip(values, steps, strict=True) if math.isfinite(value)]
    if not smaller or not finite:
        return values[0], values[-1], None, None
    best, at = min(finite)
    return values[0], values[-1], best, f"{at:.0f}"


def _named(series: Mapping[str, tuple[list[float], list[float]]]) -> dict[str, tuple[list[float], list[float]]]:
    return {name.replace("_", " "): values for name, values in series.items()}


def _panels(run: TrainingRun) -> Stack | None:
    if not run.pictures or run.size is None:
        return None
    slides = tuple(
        Slide(picture.webp, f"step {picture.step}", f"Panel of pictures at step {picture.step}")
        for picture in run.pictures
    )
    return Stack("Pictures", "Step of the training", slides, len(slides) - 1, *run.size)


def _panels_caption(run: TrainingRun) -> str:
    if not run.pictures:
        return "The run holds no pictures."
    domains = _part(run.config, "domains")
    a, b = (str(_part(domains, name).get("name", name.upper())) for name in ("a", "b"))
    more = (
        f" {len(run.pictures)} of {run.picture_count} panels are shown."
        if len(run.pictures) < run.picture_count
        else ""
    )
    return (
        f"The same slices at every step, in pairs of rows. Upper row: real {a}, {b} made of it, and {a} made back of "
        f"that. Lower row: real {b}, {a} made of it, and {b} made back of that. The patient's right is at the left.{more}"
    )
