"""Comparison of evaluations of the same patients: paired differences with intervals and tests, and a ranking.

Words used here. *Result*: a folder that `evaluate` wrote. *Pair*: two results; the later one given is B. Every number
is of paired scores, patient by patient.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from medcyclegan import __version__
from medcyclegan.atomic import write_json, write_table
from medcyclegan.errors import InputError, raise_all
from medcyclegan.evaluation import statistics
from medcyclegan.evaluation.columns import heading
from medcyclegan.evaluation.results import Case, read_results
from medcyclegan.evaluation.statistics import Better

USUAL = ("mae", "psnr", "ssim", "ms_ssim")
COMPARE_TABLE, COMPARE_FILE = "compare.csv", "compare.json"


@dataclass(frozen=True)
class Result:
    """An evaluation read back.

    Attributes:
        name: of its folder, made unique where several have the same.
        cases: those that were graded, by name.
        metrics: that its summary holds.
        summary: what its summary.json holds.
    """

    name: str
    cases: Mapping[str, Case]
    metrics: tuple[str, ...]
    summary: Mapping[str, Any]

    def score(self, case: str, metric: str) -> float:
        return self.cases[case].scores.get(metric, math.nan)


@dataclass(frozen=True)
class Comparison:
    """Results compared.

    Attributes:
        summary: what `compare.json` holds; plain data without nan.
    """

    summary: Mapping[str, Any]

    def lines(self) -> list[str]:
        """The comparison in words, one line each."""
        lines = [f"{self.summary['n']} patients, compared in {', '.join(self.summary['metrics'])}"]
        for row in self.summary["pairs"]:
            interval = ""
            if row["ci_low"] is not None:
                interval = f" (95 % interval {row['ci_low']:.4g} to {row['ci_high']:.4g})"
            p = "no test: " + str(row["reason"]) if row["p_holm"] is None else f"p {row['p_holm']:.3g} after Holm"
            lines.append(
                f"{row['metric']}: {row['b']} - {row['a']} = {row['difference']:.4g}{interval}, {p}, "
                f"{row['b']} better in {100 * row['win_rate_b']:.0f} %, effect size {row['effect_size']:.2f}, "
                f"n {row['n']}"
            )
        if ranking := self.summary["ranking"]:
            for row in ranking["methods"]:
                lines.append(
                    f"rank {row['rank']:g}: {row['name']} (mean rank {row['mean_rank']:.2f}; over resampled patients "
                    f"{row['rank_low']:g} to {row['rank_high']:g}, the same in {100 * row['kept']:.0f} %)"
                )
        else:
            lines.append(f"no ranking: {self.summary['no_ranking']}")
        return lines


def compare(
    results: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> Comparison:
    """Compare two or more evaluations of the same patients by the same protocol, in the same masks.

    For every pair and metric: the mean paired difference with its 95 % interval, Wilcoxon's signed-rank test, its
    p-value after Holm's correction over all pairs and metrics of this call, the part of the patients on whom B is
    better, and the matched-pairs rank-biserial correlation. Over all: a ranking, and its stability when patients are
    resampled. For signed errors (`me`) magnitudes are compared.

    Args:
        results: folders that `evaluate` wrote.
        output: folder for compare.csv and compare.json; None writes nothing.
        metrics: names of scores that all results have; None takes mae, psnr, ssim and ms_ssim as far as all have them.
        allow_missing: compare the patients that all results have; else a patient that one lacks is refused.

    Returns:
        The comparison; its `summary` names every patient and score that was left out.

    Raises:
        InputError: fewer than two results, one that cannot be read, different protocols, masks or patients, or a metric
            that a result lacks or that has no better direction; every problem is named.
    """
    if len(results) < 2:
        raise InputError(f"{len(results)} result was given; at least two are compared.", "Give the folders of two.")
    read = _read_all([Path(path) for path in results])
    cases, absent = _common_cases(read, allow_missing)
    chosen = _metrics(read, metrics)
    rows = [
        _pair_row(metric, better, a, b, cases) for metric, better in chosen.items() for a, b in combinations(read, 2)
    ]
    for row, p_holm in zip(rows, statistics.holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = p_holm
        row |= {key: None for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    ranked, why_not = _ranking(read, cases, chosen)
    summary = {
        "results": [{"name": r.name, "folder": str(Path(p).resolve())} for r, p in zip(read, results, strict=True)],
        "protocol": read[0].summary["protocol"],
        "n": len(cases),
        "left_out": absent,
        "metrics": list(chosen),
        "pairs": rows,
        "ranking": ranked,
        "no_ranking": why_not,
        "methods": {
            "interval": "BCa bootstrap of the mean paired difference, widened for small cohorts (Hesterberg 2015)",
            "test": f"Wilcoxon signed-rank, two-sided; Holm's correction over {len(rows)} tests",
            "effect_size": "matched-pairs rank-biserial correlation, positive where b is better",
            "seed": statistics.SEED,
            "resamples": statistics.RESAMPLES,
        },
        "version": __version__,
    }
    if output is not None:
        _write(Path(output), summary)
    return Comparison(summary)


def _read_all(folders: Sequence[Path]) -> list[Result]:
    problems, read = [], []
    names = _unique_names(folders)
    for folder, name in zip(folders, names, strict=True):
        try:
            read.append(_read(folder, name))
        except InputError as error:
            problems.append(str(error))
    raise_all(problems, "These are no results that 'medcyclegan evaluate' wrote:")
    for what in ("protocol", "mask", "range"):
        values = {result.name: result.summary.get(what) for result in read}
        if len({json.dumps(value) for value in values.values()}) > 1:
            listed = ", ".join(f"{name}: {value}" for name, value in values.items())
            raise InputError(f"The results differ in their {what} ({listed}), so that their scores cannot be compared.")
    return read


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """The shortest distinct ends of the paths."""
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise InputError(f"The same result is given twice: {', '.join(map(str, folders))}.")
    for count in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-count:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")


def _read(folder: Path, name: str) -> Result:
    found = read_results(folder)
    if not found.scored:
        raise InputError(f"{folder}: it has no graded case")
    if "protocol" not in found.summary or any(case.voxels is None for case in found.scored):
        raise InputError(f"{folder}: its protocol, or the number of voxels that were graded, was not recorded")
    return Result(name, {case.name: case for case in found.scored}, tuple(found.statistics), found.summary)


def _common_cases(read: Sequence[Result], allow_missing: bool) -> tuple[list[str], dict[str, list[str]]]:
    """The patients that all results have, and per result the patients that it lacks."""
    every = list(dict.fromkeys(case for result in read for case in result.cases))
    absent = {result.name: [case for case in every if case not in result.cases] for result in read}
    if not allow_missing:
        raise_all(
            [f"{name} lacks {', '.join(cases)}" for name, cases in absent.items() if cases],
            "Results are compared on the same patients; with --allow-missing on those that all have:",
        )
    cases = [case for case in every if all(case in result.cases for result in read)]
    if not cases:
        raise InputError("The results have no patient in common, so that there is nothing to compare.")
    raise_all(
        [
            f"case {case}: " + ", ".join(f"{result.cases[case].voxels} voxels in {result.name}" for result in read)
            for case in cases
            if len({result.cases[case].voxels for result in read}) > 1
        ],
        "These cases were graded in different masks, so that their scores cannot be compared:",
    )
    return cases, absent


def _metrics(read: Sequence[Result], wanted: Sequence[str] | None) -> dict[str, Better]:
    """The metrics to compare, and which direction of each is better."""
    shared = [metric for metric in read[0].metrics if all(metric in result.metrics for result in read)]
    known = {metric: better for metric in shared if (better := heading(metric).better)}
    if wanted is None:
        chosen = {metric: known[metric] for metric in USUAL if metric in known}
        if not chosen:
            raise InputError(
                f"The results share none of {', '.join(USUAL)}; they share {', '.join(shared) or 'nothing'}."
            )
        return chosen
    problems = [
        f"'{metric}' has no better direction" if metric in shared else f"'{metric}' is not in all results"
        for metric in wanted
        if metric not in known
    ]
    raise_all(problems, f"Metrics that can be compared are {', '.join(known)}:")
    return {metric: known[metric] for metric in wanted}


def _pair_row(metric: str, better: Better, a: Result, b: Result, cases: Sequence[str]) -> dict[str, Any]:
    pairs = {case: (a.score(case, metric), b.score(case, metric)) for case in cases}
    used = {case: pair for case, pair in pairs.items() if all(map(math.isfinite, pair))}
    if not used:
        raise InputError(f"{metric} is defined on no patient in both {a.name} and {b.name}.", "Leave it out.")
    x, y = (np.array(column) for column in zip(*used.values(), strict=True))
    found = statistics.paired_difference(x, y, better)
    return {
        "metric": metric,
        "a": a.name,
        "b": b.name,
        "better": better,
        "n": len(used),
        "left_out": [case for case in cases if case not in used],
        "mean_a": float(x.mean()),
        "mean_b": float(y.mean()),
        "difference": found.difference,
        "ci_low": found.interval.low,
        "ci_high": found.interval.high,
        "p_value": found.p_value,
        "p_holm": None,  # known once all tests are done
        "win_rate_b": found.win_rate,
        "effect_size": found.effect_size,
        "reason": found.reason or found.interval.reason,
    }


def _ranking(
    read: Sequence[Result], cases: Sequence[str], metrics: Mapping[str, Better]
) -> tuple[dict[str, Any] | None, str | None]:
    """The ranking, or why there is none."""
    losses = np.array(
        [
            [[_loss(result.score(case, metric), better) for metric, better in metrics.items()] for case in cases]
            for result in read
        ]
    )
    # Infinity can be ranked (identical images), nan cannot.
    if np.isnan(losses).any():
        which = [case for j, case in enumerate(cases) if np.isnan(losses[:, j]).any()]
        return None, f"scores of {', '.join(which)} are undefined"
    found = statistics.ranking(np.nan_to_num(losses, posinf=1e300, neginf=-1e300))
    fields = ("rank", "mean_rank", "rank_low", "rank_high", "kept", "best")
    methods = [
        {"name": read[i].name, **{field: float(getattr(found, field)[i]) for field in fields}} for i in found.order
    ]
    return {"methods": methods, "kendall_tau": found.kendall_tau}, None


def _loss(value: float, better: Better) -> float:
    return abs(value) if better == "zero" else -value if better == "higher" else value


def _write(folder: Path, summary: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The output folder {folder} cannot be made ({error}).", "Give another.") from error
    rows = [{**row, "left_out": " ".join(row["left_out"])} for row in summary["pairs"]]
    write_table(folder / COMPARE_TABLE, list(rows[0]), rows)
    write_json(folder / COMPARE_FILE, summary)
