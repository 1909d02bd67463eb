"""Grading synthetic CTs against reference CTs: pair the files, score each case, write tables and a summary.

It grades anybody's sCT and knows nothing of how one was made. Nothing is resampled or moved unless that is asked for:
a prediction must lie on the reference's grid, or its case fails by name.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medcyclegan import __version__
from medcyclegan.atomic import atomic_file, is_temporary, sweep, write_json
from medcyclegan.errors import InputError
from medcyclegan.evaluation import range_error, segmentation, statistics
from medcyclegan.evaluation.case import METRICS, Case, Metric, Settings, grade, metric_names, score_case
from medcyclegan.evaluation.metrics.tissue import Tissues
from medcyclegan.evaluation.pairing import CaseFiles, Pairing, cases_from_csv, find_cases
from medcyclegan.evaluation.protocol import Protocol
from medcyclegan.evaluation.protocol import protocol as protocol_named
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.io.writer import write_volume
from medcyclegan.machine import cores
from medcyclegan.process_pool import ProcessPool
from medcyclegan.progress import Progress, Silent
from medcyclegan.transforms.intensity import CT_WINDOW

__all__ = [
    "CASES_FILE",
    "METRICS",
    "SUMMARY_FILE",
    "Case",
    "Evaluation",
    "Metric",
    "Settings",
    "evaluate",
    "score_case",
]

CASES_FILE, SUMMARY_FILE = "cases.csv", "summary.json"
ANGLES_FILE, CLASSES_FILE = "angles.csv", "classes.csv"
RANGE_MAPS, SEGMENTATIONS = "range_error", "segmentations"
_OURS = (CASES_FILE, SUMMARY_FILE, ANGLES_FILE, CLASSES_FILE, RANGE_MAPS, SEGMENTATIONS)
_STATISTICS = ("mean", "sd", "median", "q1", "q3", "min", "max", "ci_low", "ci_high")
_SILENT = Silent()

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Evaluation:
    """The scores of a cohort.

    Attributes:
        protocol: the definition the numbers follow.
        cases: case id to its scores.
        failed: case id to why it could not be scored.
        summary: what `summary.json` holds; plain data without nan.
        missing: references without a prediction, if that was allowed.
    """

    protocol: Protocol
    cases: Mapping[str, Case]
    failed: Mapping[str, str]
    summary: Mapping[str, Any]
    missing: tuple[str, ...] = ()


def evaluate(
    pred: StrPath | None = None,
    ref: StrPath | None = None,
    output: StrPath | None = None,
    *,
    masks: StrPath | None = None,
    protocol: str = "native",
    pairs: StrPath | None = None,
    patterns: Sequence[str] = (),
    source: StrPath | None = None,
    pred_labels: StrPath | None = None,
    ref_labels: StrPath | None = None,
    segment: bool = False,
    targets: StrPath | None = None,
    angles: Sequence[float] | None = None,
    calibration: StrPath | None = None,
    range_maps: bool = False,
    tissues: tuple[float, float] | None = None,
    bone: Sequence[float] | None = None,
    resample: bool = False,
    register: bool = False,
    allow_missing: bool = False,
    device: str = "cpu",
    workers: int = 1,
    progress: Progress = _SILENT,
) -> Evaluation:
    """Score every prediction against its reference.

    Files are paired by case id (see `medcyclegan.evaluation.pairing`) before anything is read; two single files are
    paired as they are. A case that cannot be scored is recorded in `failed` and does not stop the others.

    Args:
        pred: synthetic CTs in HU, a folder or one file.
        ref: reference CTs in HU, a folder or one file; a folder may be in the SynthRAD layout, whose masks are used.
        output: folder for cases.csv, summary.json and more; None writes nothing. It may exist if it is empty or holds
            only an earlier evaluation, which is then replaced.
        masks: one mask per reference, a folder or one file; None takes the body of each reference.
        protocol: a name known to `medcyclegan.evaluation.protocol`.
        pairs: a CSV with the files of every case, instead of `pred`, `ref` and all other folders.
        patterns: how files are named, `[ROLE=]TEMPLATE`, see `medcyclegan.evaluation.pairing`.
        source: MR volumes, which are only recorded in the summary, for a report.
        pred_labels, ref_labels: label maps in TotalSegmentator's numbering; give both or none.
        segment: make the label maps with TotalSegmentator, which must be installed; needs `output`.
        targets: masks of the voxels whose range errors are asked for; None takes the center of the body.
        angles: gantry angles in degrees; None takes every 10 degrees.
        calibration: JSON from HU to relative stopping power and electron density; None takes the package's.
        range_maps: write a map of range errors in the target per case; needs `output` and targets.
        tissues: HU below which is air and above which is bone; None for -200 and 200.
        bone: thresholds in HU for surfaces of bone; None for 200.
        resample: bring predictions on other grids onto the reference's, instead of failing them.
        register: move each prediction rigidly onto its reference before it is graded; it changes the scores.
        allow_missing: grade what has a counterpart and list the rest, instead of refusing.
        device: where SSIM and MS-SSIM are computed: "cpu", "cuda" or "cuda:N".
        workers: processes that grade side by side; 0: one per core. With more than one, a script needs the usual
            `if __name__ == "__main__":`.
        progress: shows the cases as they are done.

    Returns:
        Scores, failures and summary.

    Raises:
        InputError: anything given that cannot be used, files that cannot be paired, or other content in the output.
    """
    chosen = protocol_named(protocol)
    folder = None if output is None else Path(output)
    settings = _settings(angles, calibration, range_maps, tissues, bone, resample, register, device)
    pool = ProcessPool(workers or cores(), progress)
    if (range_maps or segment) and folder is None:
        raise InputError("Maps of range errors and segmentations are files: give an output folder.")
    if segment:
        segmentation.check_installed()
        if pred_labels is not None or ref_labels is not None:
            raise InputError("Label maps are either given or made with --segment, not both.")
    if folder is not None:
        _check_output(folder)
    roles = {"mask": masks, "source": source, "pred_labels": pred_labels, "ref_labels": ref_labels, "target": targets}
    found = _find(pred, ref, pairs, roles, patterns, allow_missing)
    if range_maps and any(files.target is None for files in found.cases.values()):
        raise InputError("Maps of range errors are made of targets: give --targets.")
    if folder is not None:
        # Now, since a folder that cannot be made must not cost the user the whole evaluation.
        _make(folder)
        if range_maps:
            settings = replace(settings, range_maps=folder / RANGE_MAPS)
    if segment and folder is not None:
        found = _segmented(found, folder / SEGMENTATIONS, progress)
    tasks = {name: (name, files, chosen, settings) for name, files in found.cases.items()}
    with pool:
        graded = dict(pool.each(_attempt, tasks, "Evaluating"))
    # Processes finish in any order; tables keep that of the references.
    outcomes = {name: graded[name] for name in found.cases}
    cases = {name: case for name, case in outcomes.items() if isinstance(case, Case)}
    failed = {name: str(error) for name, error in outcomes.items() if isinstance(error, InputError)}
    given = any(files.mask is not None for files in found.cases.values())
    summary = _summary(chosen, cases, failed, "given" if given else "body", found, settings)
    result = Evaluation(chosen, cases, failed, summary, found.missing)
    if folder is not None:
        _write(folder, result, settings)
    return result


def _settings(
    angles: Sequence[float] | None,
    calibration: StrPath | None,
    range_maps: bool,
    tissues: tuple[float, float] | None,
    bone: Sequence[float] | None,
    resample: bool,
    register: bool,
    device: str,
) -> Settings:
    for name, values in (("angles", angles), ("bone thresholds", bone)):
        if values is not None and (not len(values) or not np.isfinite(values).all() or len(set(values)) < len(values)):
            raise InputError(f"{name} {list(values)}: different, finite numbers are needed, at least one.")
    if bone is not None and not all(CT_WINDOW[0] < threshold < CT_WINDOW[1] for threshold in bone):
        raise InputError(f"bone thresholds {list(bone)}: each lies between {CT_WINDOW[0]:g} and {CT_WINDOW[1]:g} HU.")
    curves = range_error.load_calibration(calibration)
    if range_maps and "relative_stopping_power" not in curves:
        raise InputError("A map of range errors needs the relative_stopping_power of the calibration.")
    if resample and register:
        raise InputError("Resampling and registering would interpolate twice.", "Give one of the two.")
    try:
        known = torch.device(device)
    except RuntimeError:
        known = None
    if known is None or known.type not in ("cpu", "cuda"):
        raise InputError(f"The device '{device}' cannot be used here; it is cpu, cuda or cuda:N (float64 is needed).")
    if known.type == "cuda" and (not torch.cuda.is_available() or (known.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"There is no device '{device}': {torch.cuda.device_count()} CUDA devices can be seen.")
    return Settings(
        Tissues() if tissues is None else Tissues(*map(float, tissues)),
        (200.0,) if bone is None else tuple(map(float, bone)),
        range_error.ANGLES if angles is None else tuple(map(float, angles)),
        curves,
        resample,
        register,
        None,
        device,
    )


def _find(
    pred: StrPath | None,
    ref: StrPath | None,
    pairs: StrPath | None,
    roles: Mapping[str, StrPath | None],
    patterns: Sequence[str],
    allow_missing: bool,
) -> Pairing:
    given = {"pred": pred, "ref": ref, **roles}
    folders = {role: Path(path) for role, path in given.items() if path is not None}
    if pairs is not None:
        if folders or patterns:
            raise InputError(f"The table {pairs} names all files; give no folders ({', '.join(folders)}) or patterns.")
        return cases_from_csv(Path(pairs), allow_missing=allow_missing)
    if pred is None or ref is None:
        raise InputError("Give the predictions and the references, or a table with --pairs.")
    if (roles["pred_labels"] is None) != (roles["ref_labels"] is None):
        raise InputError("Label maps are compared in pairs: give those of the predictions and of the references.")
    return find_cases(folders, patterns, allow_missing=allow_missing)


def _check_output(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"The output {folder} is a file.", "Give a folder.")
    if folder.is_dir():
        foreign = sorted(e.name for e in folder.iterdir() if e.name not in _OURS and not is_temporary(e))
        if foreign:
            listed = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise InputError(
                f"The output folder {folder} holds something other than an earlier evaluation: {listed}.",
                "Give a new or an empty folder.",
            )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"Nothing can be written to the output folder {folder} ({error}).", "Give another.") from error
    sweep(folder)
    # Of an earlier evaluation; they would pass for this one's.
    shutil.rmtree(folder / RANGE_MAPS, ignore_errors=True)
    shutil.rmtree(folder / SEGMENTATIONS, ignore_errors=True)


def _segmented(found: Pairing, folder: Path, progress: Progress) -> Pairing:
    """With the label maps that TotalSegmentator makes of every prediction and reference."""
    cases = {}
    for name, files in progress.track(found.cases.items(), len(found.cases), "Segmenting"):
        made = {}
        for role, volume in (("pred_labels", files.pred), ("ref_labels", files.ref)):
            made[role] = folder / role / f"{name}.nii.gz"
            if volume.name.lower().endswith((".nii", ".nii.gz")):
                segmentation.segment(volume, made[role])
                continue
            with tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch) / "ct.nii.gz"
                read = read_volume(volume)
                write_volume(copy, read.numpy()[0], grid_of(read))
                segmentation.segment(copy, made[role])
        cases[name] = replace(files, **made)
    return replace(found, cases=cases)


def _attempt(name: str, files: CaseFiles, protocol: Protocol, settings: Settings) -> Case:
    try:
        return grade(name, files, protocol, settings)
    except (InputError, MemoryError):
        raise
    # A damaged file can make a reader raise anything at all; it must cost this case only, and be seen.
    except Exception as error:
        raise InputError(f"{type(error).__name__}: {error}") from error


def _summary(
    protocol: Protocol,
    cases: Mapping[str, Case],
    failed: Mapping[str, str],
    mask: str,
    found: Pairing | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    used = settings or Settings()
    names = dict.fromkeys((*protocol.metrics, *metric_names(protocol, used, labels=True)))
    present = {name for case in cases.values() for name in case.scores} | set(protocol.metrics)
    missing = () if found is None else found.missing
    summary = {
        "protocol": protocol.name,
        "range": [protocol.low, protocol.high],
        "mask": mask,
        "n": len(cases),
        "n_failed": len(failed),
        "n_expected": len(cases) + len(failed) + len(missing),
        "metrics": {
            name: _statistics(case.scores[name].value for case in cases.values() if name in case.scores)
            for name in names
            if name in present
        },
        "interval": {
            "method": "BCa bootstrap of the mean over patients, widened for small cohorts (Hesterberg 2015)",
            "confidence": statistics.CONFIDENCE,
            "resamples": statistics.RESAMPLES,
            "seed": statistics.SEED,
        },
        "tissues": {name: list(limits) for name, limits in used.tissues.ranges.items()},
        "registered": used.register,
        "resampled": used.resample,
        "missing": list(missing),
        "unmatched": [] if found is None else list(found.unmatched),
        "doubts": {name: list(case.notes[: case.doubtful]) for name, case in cases.items() if case.doubtful},
        "failed": [{"case": name, "reason": reason} for name, reason in failed.items()],
        "files": {} if found is None else {name: _absolute(files) for name, files in found.cases.items()},
        "version": __version__,
    }
    if "range" in protocol.families:
        summary["range_error"] = {
            "calibration": {quantity: curve.source for quantity, curve in used.calibration.items()},
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

    What cannot be a JSON number is None, with its reason under "reasons".
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


def _write(folder: Path, result: Evaluation, settings: Settings) -> None:
    """Write all files; the summary goes last, so where there is one it belongs to the tables beside it."""
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    columns = ("case", *columns_of(result, settings), "voxels", "mask", "notes")
    with _table(folder / CASES_FILE) as stream:
        table = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        table.writeheader()
        for name, case in result.cases.items():
            values = {metric: repr(score.value) for metric, score in case.scores.items()}
            rest = {"voxels": case.voxels, "mask": case.mask, "notes": "; ".join(case.notes)}
            table.writerow({"case": name, **values, **rest})
        for name, reason in result.failed.items():
            table.writerow({"case": name, "notes": f"failed: {reason}"})
        for name in result.missing:
            table.writerow({"case": name, "notes": "failed: there is no prediction"})
    per_angle = [
        (name, prefix, angle, *numbers)
        for name, case in result.cases.items()
        for prefix, angles in case.angles.items()
        for angle, numbers in angles.items()
    ]
    _write_rows(folder / ANGLES_FILE, ("case", "quantity", "angle", "mean_mm", "p95_mm", "signed_mm"), per_angle)
    per_class = [
        (name, label, dice.value, hd95.value)
        for name, case in result.cases.items()
        for label, (dice, hd95) in case.classes.items()
    ]
    _write_rows(folder / CLASSES_FILE, ("case", "class", "dice", "hd95"), per_class)
    write_json(folder / SUMMARY_FILE, result.summary)


def columns_of(result: Evaluation, settings: Settings | None = None) -> tuple[str, ...]:
    """The scores that cases.csv has columns for: the headline metrics of every protocol first, then all others."""
    headline = ("mae", "psnr", "ssim", "ms_ssim", "me", "mae_bone")
    labels = any(case.classes or "dice" in case.scores for case in result.cases.values())
    return tuple(dict.fromkeys((*headline, *metric_names(result.protocol, settings or Settings(), labels=labels))))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table, or none (and none left of an earlier evaluation) if it has no rows."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with _table(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        yield stream
