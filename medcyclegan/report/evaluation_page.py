"""The page about an evaluation: what it recorded, put into tables, plots and words. Nothing is graded again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from medcyclegan.errors import InputError
from medcyclegan.evaluation.evaluate import SUMMARY_FILE
from medcyclegan.report import plots
from medcyclegan.report.density import BIN_HU, HuDensity
from medcyclegan.report.headings import TISSUE_SCORES, TISSUES, heading, tissue_of
from medcyclegan.report.page import Cell, Page, Table, cell
from medcyclegan.report.pictures import Pictures
from medcyclegan.report.results import Case, Results
from medcyclegan.report.training_page import training_parts
from medcyclegan.report.training_run import TrainingRun

# Of a table, beside the names of the cases.
_COLUMNS_ON_PAPER = 8


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
    return Page(
        title=title or "Evaluation of synthetic CT",
        facts={**facts, **_facts(results)},
        alerts=_alerts(results, pictures),
        summary=_summary_table(results),
        distributions=_distributions(results),
        range_errors=_range_errors(results),
        tissues=_tissue_table(results),
        baselines=baselines,
        densities=_densities(density) if density.voxels else (),
        no_densities="" if density.voxels else "No volumes could be opened, so there is no histogram.",
        per_case=_case_tables(results, pictures.anchors),
        doubts=_grouped(results.cases),
        cases=pictures.sections,
        cases_caption=pictures.caption,
        **(training_parts(training) if training is not None else {}),
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
        alerts.append(f"The evaluation had something to say about {noted} case(s): see its notes below the scores.")
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


def _case_tables(results: Results, anchors: Mapping[str, str]) -> tuple[Table, ...]:
    """Every score of every case, in as many tables as it takes for each to fit on a sheet of paper."""
    links = {index: anchors[case.name] for index, case in enumerate(results.cases) if case.name in anchors}
    notes = ("–: not scored.",) if any(case.failed for case in results.cases) else ()
    tables = []
    for start in range(0, max(1, len(results.columns)), _COLUMNS_ON_PAPER):
        names = results.columns[start : start + _COLUMNS_ON_PAPER]
        rows: list[tuple[Cell, ...]] = [
            (case.name, *(None if case.failed else case.scores[name] for name in names)) for case in results.cases
        ]
        part = f", scores {start + 1} to {start + len(names)} of {len(results.columns)}"
        caption = "A case's name leads to its pictures" + (part if len(names) < len(results.columns) else "")
        tables.append(Table(caption, ("case", *(str(heading(name)) for name in names)), tuple(rows), notes, links))
    return tuple(tables)


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
