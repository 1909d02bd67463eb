"""The page about an evaluation: what it recorded, put into tables, plots and words. Nothing is graded again."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from medcyclegan.errors import InputError
from medcyclegan.evaluation.summary import SUMMARY_FILE
from medcyclegan.report import plots
from medcyclegan.report.baselines import BINS, SCORES, Baselines, mean_of
from medcyclegan.report.density import BIN_HU, HuDensity
from medcyclegan.report.headings import TISSUE_SCORES, TISSUES, heading, tissue_of
from medcyclegan.report.page import Cell, Headline, Page, Table, cell
from medcyclegan.report.pictures import Pictures
from medcyclegan.report.results import Case, Results
from medcyclegan.report.training_page import training_parts
from medcyclegan.report.training_run import TrainingRun

# What is looked at first, in this order; of alternatives the first that was recorded.
_HEADLINES = (("mae",), ("mae_bone",), ("dice_bone_200", "dice_bone_*"), ("ssim", "ms_ssim"), ("me",))
_FEWEST_DISTRIBUTED = 8  # cases; fewer are read in the table, and a box of three points says nothing


def evaluation_page(
    results: Results,
    pictures: Pictures,
    title: str | None,
    facts: Mapping[str, str],
    baselines: Table | None,
    training: TrainingRun | None,
) -> Page:
    """Everything that is known of an evaluation, with the training that made the model, if it is given.

    Args:
        results: as the evaluation left them.
        pictures: of its cases.
        title: of the page; None for the usual one.
        facts: shown before those of the results.
        baselines: the scores of trivial methods.
        training: shown at the end.
    """
    density = pictures.density
    headlines = _headline_names(results)
    return Page(
        title=title or "Evaluation of synthetic CT",
        facts={**facts, **_facts(results)},
        alerts=_alerts(results, pictures),
        headlines=_headlines(results, pictures.baselines, headlines),
        basis=_basis(results),
        headline_notes=_headline_notes(results, pictures.baselines, headlines),
        summary=_summary_table(results),
        distributions=_distributions(results, headlines),
        further_distributions=_distributions(results, [name for name in results.statistics if name not in headlines]),
        range_errors=_range_errors(results),
        tissues=_tissue_table(results),
        baselines=baselines,
        densities=_densities(density) if density.voxels else (),
        no_densities="" if density.voxels else "No volumes could be opened, so there is no histogram.",
        per_case=_case_table(results, pictures.anchors, headlines),
        doubts=_grouped(results.cases),
        cases=tuple(case for case in pictures.sections if case.badge),
        other_cases=tuple(case for case in pictures.sections if not case.badge),
        cases_caption=pictures.caption,
        **(training_parts(training) if training is not None else {}),
    )


def _headline_names(results: Results) -> list[str]:
    found = [
        name for wanted in _HEADLINES for name in [c for w in wanted for c in fnmatch.filter(results.columns, w)][:1]
    ]
    return found or list(results.columns[:4])


def _headlines(results: Results, baselines: Baselines, names: Sequence[str]) -> tuple[Headline, ...]:
    shown = []
    for name in names:
        beside = {
            f"best {kind}": cell(value)
            for kind, scores in (("constant", baselines.constant), ("table", baselines.table))
            if (value := mean_of(scores, name)) is not None
        }
        known = results.statistics.get(name, {})
        interval = _interval(known.get("ci_low"), known.get("ci_high")) or ""
        shown.append(Headline(str(heading(name)), cell(_mean(results, name)), interval, beside))
    return tuple(shown)


def _headline_notes(results: Results, baselines: Baselines, names: Sequence[str]) -> tuple[str, ...]:
    scored = sum(not case.failed for case in results.cases)
    if not baselines.cases:
        return ()
    over = ""
    if baselines.cases < scored:
        over = f" Over the {baselines.cases} of {scored} cases whose volumes could be opened."
    notes = [
        "Best constant: every voxel of the mask gets the median HU of its own reference in the mask, which of all "
        f"single values has the smallest MAE there.{over}"
    ]
    if tables := len(baselines.table.get("mae", ())):
        over = f" Over the {tables} of {scored} cases that have an MR." if tables < scored else ""
        notes.append(
            f"Best table: of each case, {BINS} equal bins of MR intensity in the mask, each with the median HU of its "
            f"own voxels.{over}"
        )
    notes.append(f"{'Both know' if tables else 'It knows'} the reference of the case, and the model does not.")
    missing = [heading(name).label for name in names if name not in SCORES]
    if missing:
        notes[-1] += f" Nothing is compared by {' or '.join(missing)}."
    return tuple(notes)


def _basis(results: Results) -> str:
    facts = _basic_facts(results)
    told = f"Means over the cases: {facts['Cases']}, in {facts['Scored in']}. Protocol: {facts['Protocol']}. "
    if any(entry.get("ci_low") is not None for entry in results.statistics.values()):
        return told + "In brackets the 95 % interval of the mean."
    return told + (f"No intervals: {results.no_interval}." if results.no_interval else "No intervals were recorded.")


def _basic_facts(results: Results) -> dict[str, str]:
    summary = results.summary
    failed = sum(case.failed for case in results.cases)
    n = len(results.cases) - failed
    facts = {"Cases": f"{n} scored" if not failed else f"{n} of {len(results.cases)} scored"}
    limits: Any = summary.get("range")
    span = f", {limits[0]:g} to {limits[1]:g} HU".replace("-", "−") if _is_numbers(limits) else ""
    facts["Protocol"] = f"{summary['protocol']}{span}" if isinstance(summary.get("protocol"), str) else "not recorded"
    mask = summary.get("mask")
    facts["Scored in"] = {"body": "the body of each reference", "given": "the masks given"}.get(
        mask if isinstance(mask, str) else "", str(mask) if mask else "a mask that was not recorded"
    )
    return facts


def _facts(results: Results) -> dict[str, str]:
    summary = results.summary
    facts = _basic_facts(results)
    if tissues := _tissue_words(summary.get("tissues")):
        facts["Tissues"] = tissues
    interval = summary.get("interval")
    if isinstance(interval, dict):
        method, rest = interval.get("method", "method not recorded"), ("confidence", "resamples", "seed")
        facts["Intervals"] = ", ".join([str(method), *(f"{key} {interval[key]}" for key in rest if key in interval)])
    told = {"protocol", "range", "mask", "tissues", "n", "n_failed", "n_expected", "missing", "version"}
    for key, value in summary.items():
        if key not in told and isinstance(value, str | int | float | bool) and value != "":
            facts[key.replace("_", " ").capitalize()] = (
                {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            )
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


def _alerts(results: Results, pictures: Pictures) -> tuple[str, ...]:
    alerts = [
        f"{case.name} could not be scored: {case.notes or 'no reason recorded'}"
        for case in results.cases
        if case.failed
    ]
    if missing := results.summary.get("missing"):
        names = [str(name) for name in missing] if isinstance(missing, list | dict) else [str(missing)]
        alerts.append(f"Missing, and in none of the numbers: {', '.join(names)}.")
    if unmatched := results.summary.get("unmatched"):
        names = [str(name) for name in unmatched] if isinstance(unmatched, list | dict) else [str(unmatched)]
        alerts.append(f"Given, but paired with nothing: {', '.join(names)}.")
    doubts = results.summary.get("doubts")
    if isinstance(doubts, dict):
        alerts += [f"Doubtful, {note}." for note in _grouped_notes({str(k): _texts(v) for k, v in doubts.items()})]
    elif noted := sum(bool(case.notes) and not case.failed for case in results.cases):
        alerts.append(
            f"The evaluation had something to say about {noted} case(s): see its notes below the scores of every case."
        )
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
        why = f": {results.no_interval}" if results.no_interval else ""
        notes.insert(0, f"The evaluation recorded no intervals{why}.")
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


def _texts(value: Any) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list) else [str(value)]


def _mean(results: Results, name: str) -> float | None:
    """As the summary has it; of columns that it does not hold, over the cases with a finite value."""
    if name in results.statistics:
        return results.statistics[name]["mean"]
    values = [case.scores[name] for case in results.cases if math.isfinite(case.scores.get(name, math.nan))]
    return sum(values) / len(values) if values else None


def _distributions(results: Results, names: Sequence[str]) -> tuple[plots.Plot, str] | None:
    """Of these scores over the cases; None where there are too few cases for more than the table says."""
    scores = []
    for name in names:
        if name.startswith("share_") or name not in results.statistics:
            continue
        found = results.statistics[name]
        low, high = found["ci_low"], found["ci_high"]
        values = [case.scores[name] for case in results.cases if not case.failed]
        interval = None if low is None or high is None else (low, high)
        scores.append(plots.Distribution(str(heading(name)), values, found["mean"], interval))
    if not scores or sum(not case.failed for case in results.cases) < _FEWEST_DISTRIBUTED:
        return None
    caption = "Each point is a case (its height means nothing); box: quartiles and median. Diamond: mean" + (
        ", with its 95 % interval." if any(score.interval for score in scores) else "; no interval was recorded."
    )
    return plots.distributions(scores), caption


def _range_errors(results: Results) -> tuple[plots.Plot, str] | None:
    recorded = results.summary.get("range_error")
    if recorded is None:
        return None
    try:
        angles = {
            heading(f"{name}_mm").label: [
                (float(row["angle"]), float(row["mean_mm"]), float(row["p95_mm"])) for row in rows
            ]
            for name, rows in recorded["angles"].items()
        }
        sources = {str(name): str(source) for name, source in recorded.get("calibration", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = results.folder / SUMMARY_FILE
        raise InputError(f"{where}: 'range_error' cannot be read ({error!r}).", "Evaluate again.") from error
    angles = {name: rows for name, rows in angles.items() if rows}
    if not angles:
        return None
    calibration = "; ".join(f"{name.replace('_', ' ')}: {source.rstrip('.')}" for name, source in sources.items())
    # A target of one point, such as the body's center, has one path per angle: the two lines would be one.
    tails = any(p95 != mean for rows in angles.values() for _, mean, p95 in rows)
    over = "each case's mean (line) and 95th percentile (dashed)" if tails else "the one path of each case"
    caption = (
        "Absolute difference of the path length from the skin to the target, synthetic CT against CT, at every gantry "
        f"angle; means over the cases of {over}."
    )
    return plots.by_angle(angles), caption + (f" Calibration: {calibration}." if calibration else "")


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
            "HU (bias ± 1.96 SD of the voxels' differences; neighboring voxels are not independent, so this is a "
            "spread and no confidence interval). Points: the cases at their own means.",
        ),
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _case_table(results: Results, anchors: Mapping[str, str], first: Sequence[str]) -> Table:
    """Every score of every case, those that are looked at first in front."""
    links = {index: anchors[case.name] for index, case in enumerate(results.cases) if case.name in anchors}
    names = [*first, *(name for name in results.columns if name not in first)]
    rows: list[tuple[Cell, ...]] = [
        (case.name, *(None if case.failed else case.scores[name] for name in names)) for case in results.cases
    ]
    notes = ("–: not scored.",) if any(case.failed for case in results.cases) else ()
    caption = "A case's name leads to its pictures"
    return Table(caption, ("case", *(str(heading(name)) for name in names)), tuple(rows), notes, links, sortable=True)


def _grouped(cases: Sequence[Case]) -> tuple[str, ...]:
    """Notes of the evaluation, each once, with the cases that it concerns."""
    return _grouped_notes(
        {case.name: [part.strip() for part in case.notes.split(";")] for case in cases if not case.failed}
    )


def _grouped_notes(notes_of: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, notes in notes_of.items():
        for note in filter(None, notes):
            found[note].append(name)
    return tuple(f"{', '.join(names)}: {note}" for note, names in found.items())
