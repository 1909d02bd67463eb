"""The result of an evaluation: the scores of a cohort, their statistics, and the files with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcyclegan import __version__
from medcyclegan.atomic import write_json, write_table
from medcyclegan.evaluation import statistics
from medcyclegan.evaluation.case import Case, metric_names
from medcyclegan.evaluation.pairing import CaseFiles, Pairing
from medcyclegan.evaluation.scoring import Scoring

CASES_FILE, SUMMARY_FILE = "cases.csv", "summary.json"
ANGLES_FILE, CLASSES_FILE = "angles.csv", "classes.csv"
_STATISTICS = ("mean", "sd", "median", "q1", "q3", "min", "max", "ci_low", "ci_high")


@dataclass(frozen=True)
class Evaluation:
    """The scores of a cohort.

    Attributes:
        scoring: how they were computed.
        cases: case id to its scores.
        failed: case id to why it could not be scored.
        summary: what `summary.json` holds; plain data without nan.
        missing: references without a prediction, if that was allowed.
    """

    scoring: Scoring
    cases: Mapping[str, Case]
    failed: Mapping[str, str]
    summary: Mapping[str, Any]
    missing: tuple[str, ...] = ()


def summarize(
    scoring: Scoring, pairing: Pairing, cases: Mapping[str, Case], failed: Mapping[str, str]
) -> dict[str, Any]:
    """What `summary.json` holds: plain data without nan."""
    protocol = scoring.rules
    present = {name for case in cases.values() for name in case.scores} | set(protocol.metrics)
    masks = any(files.mask is not None for files in pairing.cases.values())
    summary = {
        "protocol": protocol.name,
        "range": [protocol.low, protocol.high],
        "mask": "given" if masks else "body",
        "n": len(cases),
        "n_failed": len(failed),
        "n_expected": len(cases) + len(failed) + len(pairing.missing),
        "metrics": {
            name: _statistics(case.scores[name].value for case in cases.values() if name in case.scores)
            for name in metric_names(scoring, labels=True)
            if name in present
        },
        "interval": {
            "method": "BCa bootstrap of the mean over patients, widened for small cohorts (Hesterberg 2015)",
            "confidence": statistics.CONFIDENCE,
            "resamples": statistics.RESAMPLES,
            "seed": statistics.SEED,
        },
        "tissues": {name: list(limits) for name, limits in scoring.tissues.ranges.items()},
        "registered": scoring.register,
        "resampled": scoring.resample,
        "missing": list(pairing.missing),
        "unmatched": list(pairing.unmatched),
        "doubts": {name: list(case.notes[: case.doubtful]) for name, case in cases.items() if case.doubtful},
        "failed": [{"case": name, "reason": reason} for name, reason in failed.items()],
        "files": {name: _absolute(files) for name, files in pairing.cases.items()},
        "version": __version__,
    }
    if "range" in protocol.families:
        summary["range_error"] = {
            "calibration": {quantity: curve.source for quantity, curve in scoring.calibration.items()},
            "angles": _over_cases([case.angles for case in cases.values()]),
        }
    return summary


def _absolute(files: CaseFiles) -> dict[str, str | None]:
    return {
        role: None if path is None else str(path.resolve())
        for role, path in (("pred", files.pred), ("ref", files.ref), ("mask", files.mask), ("source", files.source))
    }


def _over_cases(
    cases: Sequence[Mapping[str, Mapping[float, tuple[float, float, float]]]],
) -> dict[str, list[dict[str, float]]]:
    """Per quantity and angle, the means over the cases of mean, 95th percentile and signed mean, mm."""
    result: dict[str, list[dict[str, float]]] = {}
    for prefix in dict.fromkeys(prefix for case in cases for prefix in case):
        rows = [case[prefix] for case in cases if prefix in case]
        result[prefix] = [
            {"angle": angle, "mean_mm": mean, "p95_mm": p95, "signed_mm": signed}
            for angle in rows[0]
            for mean, p95, signed in [map(float, np.mean([row[angle] for row in rows], axis=0))]
        ]
    return result


def _statistics(values: Iterable[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, quartiles (linear interpolation), range and interval of the defined values.

    A value that is not finite is None, with its reason under "reasons".
    """
    everything = np.array(list(values), dtype=np.float64)
    known = np.sort(everything[~np.isnan(everything)])
    found: dict[str, float] = {}
    reasons: dict[str, str] = {}
    if known.size:
        found["mean"] = float(known.mean())
        # An infinity makes the deviations inf - inf, which is nan and reported as such below.
        with np.errstate(invalid="ignore"):
            found["sd"] = float(known.std(ddof=1)) if known.size > 1 else math.nan
        found |= {name: _quantile(known, q) for name, q in (("median", 0.5), ("q1", 0.25), ("q3", 0.75))}
        found |= {"min": float(known[0]), "max": float(known[-1])}
        interval = statistics.mean_interval(known)
        found |= {"ci_low": interval.low, "ci_high": interval.high}
    for name in _STATISTICS:
        if not known.size:
            reasons[name] = "no case has a value"
        elif math.isfinite(found[name]):
            continue
        elif name == "sd" and known.size == 1:
            reasons[name] = "one value has no standard deviation"
        elif name.startswith("ci_") and known.size < statistics.SMALLEST_COHORT:
            reasons[name] = str(interval.reason)
        else:
            reasons[name] = "infinite, since the images of at least one case are identical"
    numbers = {name: None if name in reasons else found[name] for name in _STATISTICS}
    return {**numbers, "n": int(known.size), "n_undefined": int(everything.size - known.size), "reasons": reasons}


def _quantile(ordered: npt.NDArray[np.float64], q: float) -> float:
    """Linear interpolation; unlike numpy's, right where the upper neighbor is infinite but has no weight."""
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    fraction = position - below
    if fraction == 0:
        return float(ordered[below])
    return float((1 - fraction) * ordered[below] + fraction * ordered[below + 1])


def write(folder: Path, result: Evaluation) -> None:
    """Write all files, the summary last: where it exists, the tables are complete."""
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    rows: list[dict[str, object]] = []
    per_angle: list[dict[str, object]] = []
    per_class: list[dict[str, object]] = []
    for name, case in result.cases.items():
        values = {metric: repr(score.value) for metric, score in case.scores.items()}
        rows.append({"case": name, **values, "voxels": case.voxels, "mask": case.mask, "notes": "; ".join(case.notes)})
        for quantity, angles in case.angles.items():
            for angle, (mean, p95, signed) in angles.items():
                numbers = {"mean_mm": mean, "p95_mm": p95, "signed_mm": signed}
                per_angle.append({"case": name, "quantity": quantity, "angle": angle, **numbers})
        for label, (dice, hd95) in case.classes.items():
            per_class.append({"case": name, "class": label, "dice": dice.value, "hd95": hd95.value})
    reasons = {**result.failed, **dict.fromkeys(result.missing, "there is no prediction")}
    rows += [{"case": name, "notes": f"failed: {reason}"} for name, reason in reasons.items()]
    write_table(folder / CASES_FILE, ("case", *_columns(result), "voxels", "mask", "notes"), rows)
    for file, lines in ((ANGLES_FILE, per_angle), (CLASSES_FILE, per_class)):
        if lines:
            write_table(folder / file, list(lines[0]), lines)
        else:
            (folder / file).unlink(missing_ok=True)  # of an earlier evaluation
    write_json(folder / SUMMARY_FILE, result.summary)


def _columns(result: Evaluation) -> tuple[str, ...]:
    """The scores that cases.csv has columns for: the headline metrics of every protocol first, then all others."""
    headline = ("mae", "psnr", "ssim", "ms_ssim", "me", "mae_bone")
    labels = any(case.classes or "dice" in case.scores for case in result.cases.values())
    return tuple(dict.fromkeys((*headline, *metric_names(result.scoring, labels=labels))))
