"""The page about an evaluation: its records as tables, plots and text. Nothing is scored again."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcyclegan.errors import InputError
from medcyclegan.evaluation.columns import TISSUES, heading
from medcyclegan.evaluation.results import Results
from medcyclegan.evaluation.summary import SUMMARY_FILE
from medcyclegan.report import plots
from medcyclegan.report.baselines import BINS, SCORES, Baselines, mean_of
from medcyclegan.report.density import BIN_HU, HuDensity
from medcyclegan.report.page import About, Cell, Headline, Page, Table, cell
from medcyclegan.report.pictures import Pictures
from medcyclegan.report.training_page import training_part
from medcyclegan.report.training_run import read_run

# What is looked at first, in this order; of alternatives the first that was recorded.
_HEADLINES = (("mae",), ("mae_bone",), ("dice_bone_200", "dice_bone_*"), ("ssim", "ms_ssim"), ("me",))
_FEWEST_DISTRIBUTED = 8  # cases; fewer are read in the table, and a box of three points says nothing


def evaluation_page(results: Results, pictures: Pictures, about: About) -> Page:
    """Everything that is known of an evaluation, with the training that made the model, if it is given.

    Args:
        results: as the evaluation left them.
        pictures: of its cases.
        about: title, other facts and training.
    """
    headlines = _headline_names(results)
    return Page(
        title=about.title or "Evaluation of synthetic CT",
        facts={**about.facts, **_facts(results)},
        alerts=_alerts(results, pictures),
        headlines=_headlines(results, pictures.baselines, headlines),
        basis=_basis(results),
        headline_notes=_headline_notes(results, pictures.baselines, headlines),
        summary=_summary_table(results),
        distributions=_distributions(results, headlines),
        other_distributions=_distributions(results, [name for name in results.statistics if name not in headlines]),
        range_errors=_range_errors(results),
        tissues=_tissue_table(results),
        densities=_densities(pictures.density) if pictures.density.voxels else (),
        per_case=_case_table(results, pictures.anchors, headlines),
        doubts=_grouped({case.name: [part.strip() for part in case.notes.split(";")] for case in results.scored}),
        cases=tuple(case for case in pictures.sections if case.badge),
        other_cases=tuple(case for case in pictures.sections if not case.badge),
        cases_caption=pictures.caption,
        training=None if about.run is None else training_part(read_run(Path(about.run))),
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
        interval = _mean_interval(results, name) or ""
        shown.append(Headline(str(heading(name)), cell(_mean(results, name)), interval, beside))
    return tuple(shown)


def _headline_notes(results: Results, baselines: Baselines, names: Sequence[str]) -> tuple[str, ...]:
    scored = len(results.scored)
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
    means = f"Means over the cases: {facts['Cases']}, in {facts['Scored in']}. Protocol: {facts['Protocol']}. "
    if any(entry["ci_low"] is not None for entry in results.statistics.values()):
        return means + "In brackets the 95 % interval of the mean."
    return means + (f"No intervals: {results.no_interval}." if results.no_interval else "No intervals were recorded.")


def _basic_facts(results: Results) -> dict[str, str]:
    summary, n, total = results.summary, len(results.scored), len(results.cases)
    span = _limits(summary.get("range"))
    mask = summary.get("mask")
    return {
        "Cases": f"{n} scored" if n == total else f"{n} of {total} scored",
        "Protocol": f"{summary['protocol']}{span and f', {span} HU'}" if "protocol" in summary else "not recorded",
        "Scored in": {"body": "the body of each reference", "given": "the masks given"}.get(
            str(mask), "a mask that was not recorded"
        ),
    }


def _facts(results: Results) -> dict[str, str]:
    summary = results.summary
    facts = _basic_facts(results)
    if tissues := _tissue_words(summary):
        facts["Tissues"] = tissues
    interval = summary.get("interval")
    if isinstance(interval, dict):
        method, rest = interval.get("method", "method not recorded"), ("confidence", "resamples", "seed")
        facts["Intervals"] = ", ".join([str(method), *(f"{key} {interval[key]}" for key in rest if key in interval)])
    for key in ("registered", "resampled"):
        if key in summary:
            facts[key.capitalize()] = "yes" if summary[key] else "no"
    facts["Graded by"] = f"medcyclegan {summary['version']}" if "version" in summary else "not recorded"
    return facts


def _limits(limits: Any) -> str:
    """[-200, 200] as "−200 to 200", an open end as "…"; empty for anything else."""
    if not isinstance(limits, list) or not all(end is None or isinstance(end, int | float) for end in limits):
        return ""
    return " to ".join("…" if end is None else f"{end:g}" for end in limits).replace("-", "−")


def _tissue_words(summary: Mapping[str, Any]) -> str:
    tissues = summary.get("tissues")
    parts = tissues.items() if isinstance(tissues, dict) else ()
    return ", ".join(f"{name.replace('_', ' ')} {words} HU" for name, limits in parts if (words := _limits(limits)))


def _alerts(results: Results, pictures: Pictures) -> tuple[str, ...]:
    alerts = [
        f"{case.name} could not be scored: {case.notes or 'no reason recorded'}"
        for case in results.cases
        if case.failed
    ]
    for key, what in (
        ("missing", "Missing, and in none of the numbers"),
        ("unmatched", "Given, but paired with nothing"),
    ):
        if names := _texts(results.summary.get(key)):
            alerts.append(f"{what}: {', '.join(names)}.")
    doubts = results.summary.get("doubts")
    if isinstance(doubts, dict):
        alerts += [f"Doubtful, {note}." for note in _grouped({name: _texts(notes) for name, notes in doubts.items()})]
    elif noted := sum(bool(case.notes) for case in results.scored):
        alerts.append(
            f"The evaluation had something to say about {noted} case(s): see its notes below the scores of every case."
        )
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, why in pictures.not_shown.items():
        reasons[why].append(name)
    for why, names in reasons.items():
        who = "any case" if len(names) == len(pictures.sections) else ", ".join(names)
        alerts.append(f"No pictures of {who}: {why}.")
    if contradicted := [c.name for c in pictures.sections if any("the table of scores says" in n for n in c.notes)]:
        alerts.append(f"Volumes and scores contradict each other in {', '.join(contradicted)}: see the notes there.")
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
        elif n is not None and n < len(results.scored):
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


def _mean_interval(results: Results, name: str) -> str | None:
    known = results.statistics.get(name, {})
    return _interval(known.get("ci_low"), known.get("ci_high"))


def _tissue_table(results: Results) -> Table | None:
    scores = ("mae", "me")
    tissues = [name for name in TISSUES if any(f"{score}_{name}" in results.columns for score in (*scores, "share"))]
    if not tissues:
        return None
    rows: list[tuple[Cell, ...]] = []
    for tissue in tissues:
        row: list[Cell] = [{"soft": "soft tissue"}.get(tissue, tissue)]
        for name in (f"{score}_{tissue}" for score in scores):
            row += [_mean(results, name), _mean_interval(results, name)]
        share = _mean(results, f"share_{tissue}")
        rows.append((*row, None if share is None else 100 * share))
    notes = [] if _tissue_words(results.summary) else ["The evaluation did not record the thresholds."]
    if len(tissues) < len(TISSUES):
        notes.append(f"No scores were recorded for: {', '.join(t for t in TISSUES if t not in tissues)}.")
    columns = [part for score in scores for part in (str(heading(score)), "95 % interval")]
    columns = ["tissue, by the reference's HU", *columns, "share of the mask [%]"]
    return Table("Mean over the cases, by tissue", tuple(columns), tuple(rows), tuple(notes))


def _texts(value: Any) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _mean(results: Results, name: str) -> float | None:
    """As the summary has it; of columns that it does not hold, over the cases with a finite value."""
    if name in results.statistics:
        return results.statistics[name]["mean"]
    values = [case.scores[name] for case in results.cases if math.isfinite(case.scores.get(name, math.nan))]
    return sum(values) / len(values) if values else None


def _distributions(results: Results, names: Sequence[str]) -> tuple[plots.Plot, str] | None:
    """Distributions of these scores over the cases; None if there are too few cases."""
    scores = []
    for name in names:
        if name.startswith("share_") or name not in results.statistics:
            continue
        found = results.statistics[name]
        low, high = found["ci_low"], found["ci_high"]
        values = [case.scores[name] for case in results.scored]
        interval = None if low is None or high is None else (low, high)
        scores.append(plots.Distribution(str(heading(name)), values, found["mean"], interval))
    if not scores or len(results.scored) < _FEWEST_DISTRIBUTED:
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


def _grouped(notes_of: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Notes of the evaluation, each once, with the cases that it concerns."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, notes in notes_of.items():
        for note in filter(None, notes):
            found[note].append(name)
    return tuple(f"{', '.join(names)}: {note}" for note, names in found.items())
