"""Grading synthetic CTs against reference CTs: pair the files, score each case, write a table and a summary.

It grades anybody's sCT and knows nothing of how one was made. Nothing is resampled: a prediction must lie on the
reference's grid, or its case fails by name.
"""

from __future__ import annotations

import csv
import math
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcyclegan import __version__
from medcyclegan.atomic import atomic_file, write_json
from medcyclegan.errors import InputError
from medcyclegan.evaluation.metrics.mae import mae, mae_bone, me
from medcyclegan.evaluation.metrics.ms_ssim import ms_ssim
from medcyclegan.evaluation.metrics.psnr import psnr
from medcyclegan.evaluation.metrics.score import Limits, Mask, Score, Volume
from medcyclegan.evaluation.metrics.ssim import ssim
from medcyclegan.evaluation.pairing import pair
from medcyclegan.evaluation.protocol import Protocol
from medcyclegan.evaluation.protocol import protocol as protocol_named
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import case_id, grid_of, list_volumes, read_mask, read_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.transforms.body import body_mask

Metric = Callable[[Volume, Volume, Mask | None, Limits], Score]

# The order is that of the columns of cases.csv.
METRICS: dict[str, Metric] = {
    "mae": mae,
    "psnr": psnr,
    "ssim": ssim,
    "ms_ssim": ms_ssim,
    "me": me,
    "mae_bone": mae_bone,
}
COLUMNS = ("case", *METRICS, "voxels", "mask", "notes")
CASES_FILE, SUMMARY_FILE = "cases.csv", "summary.json"
# Every CT of a patient shows air; without any, the intercept was probably lost and water reads about 1000.
AIR_BELOW_HU = -200.0
# The rounding of a header in single precision stays below this; it is far less than any voxel.
_TOLERANCE_MM = 1e-2
_SILENT = Silent()

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Case:
    """The scores of one case.

    Attributes:
        scores: metric name to score, in the order of the protocol.
        voxels: number of voxels in the mask.
        mask: "given", or "body" where the reference's body was used for want of a mask.
        notes: doubts about the volumes, and the reason of every score that is no ordinary number.
    """

    scores: Mapping[str, Score]
    voxels: int
    mask: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The scores of a cohort.

    Attributes:
        protocol: the definition the numbers follow.
        cases: case id to its scores.
        failed: case id to why it could not be scored.
        summary: what `summary.json` holds; plain data without nan.
    """

    protocol: Protocol
    cases: Mapping[str, Case]
    failed: Mapping[str, str]
    summary: Mapping[str, Any]


def score_case(reference: Volume, synthetic: Volume, mask: Mask | None, protocol: Protocol) -> dict[str, Score]:
    """Every metric of the protocol on one case.

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU, on the same grid.
        mask: (X, Y, Z), voxels above 0 count; None for all.
        protocol: which metrics, and the HU range.

    Returns:
        Metric name to score, in the order of the protocol.

    Raises:
        ValueError: the shapes differ or are not three-dimensional, or the protocol names an unknown metric.
    """
    unknown = [name for name in protocol.metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"protocol {protocol.name} names unknown metrics {unknown}; there are {list(METRICS)}")
    limits = (protocol.low, protocol.high)
    return {name: METRICS[name](reference, synthetic, mask, limits) for name in protocol.metrics}


def evaluate(
    pred: StrPath,
    ref: StrPath,
    output: StrPath | None = None,
    *,
    masks: StrPath | None = None,
    protocol: str = "native",
    progress: Progress = _SILENT,
) -> Evaluation:
    """Score every prediction against its reference.

    Files are paired by case id (see `medcyclegan.evaluation.pairing`) before anything is read; two single files are
    paired as they are. A case that cannot be scored is recorded in `failed` and does not stop the others.

    Args:
        pred: synthetic CTs in HU, a folder or one file.
        ref: reference CTs in HU, a folder or one file.
        output: folder for cases.csv and summary.json; None writes nothing. It may exist if it is empty or holds only
            an earlier evaluation, which is then replaced.
        masks: one mask per reference, a folder or one file; None takes the body of each reference.
        protocol: a name known to `medcyclegan.evaluation.protocol`.
        progress: shows the cases as they are done.

    Returns:
        Scores, failures and summary.

    Raises:
        InputError: an unknown protocol, a missing file or folder, files that cannot be paired one to one, or an output
            folder with other content.
    """
    chosen = protocol_named(protocol)
    folder = None if output is None else Path(output)
    if folder is not None:
        _check_output(folder)
    paths = _paired(Path(pred), Path(ref), None if masks is None else Path(masks))
    if folder is not None:
        # Now, since a folder that cannot be made must not cost the user the whole evaluation.
        _make(folder)
    cases: dict[str, Case] = {}
    failed: dict[str, str] = {}
    for name, files in progress.track(paths.items(), len(paths), "Evaluating"):
        try:
            cases[name] = _score_files(*files, chosen)
        except InputError as error:
            failed[name] = str(error)
        # A damaged file can make a reader raise anything at all; it must cost this case only, and be seen.
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    summary = _summary(chosen, cases, failed, "body" if masks is None else "given")
    summary["files"] = {name: _recorded(*files) for name, files in paths.items()}
    result = Evaluation(chosen, cases, failed, summary)
    if folder is not None:
        _write(folder, result)
    return result


def _check_output(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"The output {folder} is a file.", "Give a folder.")
    if folder.is_dir():
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in (CASES_FILE, SUMMARY_FILE))
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


def _paired(pred: Path, ref: Path, masks: Path | None) -> dict[str, tuple[Path, Path, Path | None]]:
    """Case id to the paths of its prediction, its reference and its mask, if any."""
    for path in (pred, ref, masks):
        if path is not None and not path.exists():
            raise InputError(f"There is no {path}.", "Give a volume or a folder of volumes.")
    references, predictions = _volumes(ref), _volumes(pred)
    if ref.is_file() and pred.is_file():
        prediction_of = dict(zip(references, predictions, strict=True))
    else:
        prediction_of = pair(references, predictions, "prediction")
    mask_files: dict[str, Path] = {} if masks is None else _volumes(masks)
    if masks is None:
        mask_of = {}
    elif ref.is_file() and masks.is_file():
        mask_of = dict(zip(references, mask_files, strict=True))
    else:
        mask_of = pair(references, mask_files, "mask", spare_allowed=True)
    return {
        name: (predictions[prediction_of[name]], path, mask_files[mask_of[name]] if mask_of else None)
        for name, path in references.items()
    }


def _volumes(path: Path) -> dict[str, Path]:
    return list_volumes(path) if path.is_dir() else {case_id(path): path}


def _score_files(pred: Path, ref: Path, mask: Path | None, protocol: Protocol) -> Case:
    synthetic, synthetic_grid, synthetic_doubts = _read("prediction", pred)
    reference, grid, reference_doubts = _read("reference", ref)
    if not synthetic_grid.matches(grid, _TOLERANCE_MM):
        raise InputError(_grids_differ(pred, synthetic_grid, ref, grid))
    inside = body_mask(reference, grid.spacing.tolist(), "CT") if mask is None else read_mask(mask, grid)
    scores = score_case(reference, synthetic, inside, protocol)
    notes = (*reference_doubts, *synthetic_doubts, *_reasons(scores))
    return Case(scores, int(np.count_nonzero(inside)), "body" if mask is None else "given", notes)


def _read(kind: str, path: Path) -> tuple[npt.NDArray[np.float32], Grid, list[str]]:
    """The volume (X, Y, Z), its grid, and what is doubtful about it, the reader's own warnings included."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_volume(path)
    doubts = [f"{kind}: {warning.message}" for warning in caught if issubclass(warning.category, UserWarning)]
    array: npt.NDArray[np.float32] = volume.numpy()[0]
    lowest = float(array.min())
    if lowest >= AIR_BELOW_HU:
        doubts.append(
            f"{kind}: no value is below {AIR_BELOW_HU:g} HU (the lowest is {lowest:g}); "
            "a CT stored without its intercept, or not in HU?"
        )
    return array, grid_of(volume), doubts


def _grids_differ(pred: Path, pred_grid: Grid, ref: Path, ref_grid: Grid) -> str:
    def words(grid: Grid) -> str:
        return f"{' x '.join(map(str, grid.shape))} voxels of {' x '.join(f'{s:.4g}' for s in grid.spacing)} mm"

    apart = ""
    if pred_grid.shape == ref_grid.shape:
        apart = f"; voxels of the same index lie up to {pred_grid.distance(ref_grid):.4g} mm apart"
    return (
        f"The prediction {pred} and the reference {ref} lie on different grids: {words(pred_grid)} against "
        f"{words(ref_grid)}{apart}. Nothing is resampled here: bring the prediction onto the reference's grid."
    )


def _recorded(pred: Path, ref: Path, mask: Path | None) -> dict[str, str | None]:
    """Where the volumes of a case are, for a report to open them."""
    return {
        "pred": str(pred.resolve()),
        "ref": str(ref.resolve()),
        "mask": None if mask is None else str(mask.resolve()),
    }


def _reasons(scores: Mapping[str, Score]) -> list[str]:
    metrics: dict[str, list[str]] = defaultdict(list)
    for name, score in scores.items():
        if score.reason:
            metrics[score.reason].append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in metrics.items()]


def _summary(protocol: Protocol, cases: Mapping[str, Case], failed: Mapping[str, str], mask: str) -> dict[str, Any]:
    return {
        "protocol": protocol.name,
        "range": [protocol.low, protocol.high],
        "mask": mask,
        "n": len(cases),
        "n_failed": len(failed),
        "metrics": {name: _statistics(case.scores[name].value for case in cases.values()) for name in protocol.metrics},
        "failed": [{"case": name, "reason": reason} for name, reason in failed.items()],
        "version": __version__,
    }


def _statistics(values: Iterable[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, quartiles (linear interpolation) and range of the defined values.

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
    for name in ("mean", "sd", "median", "q1", "q3", "min", "max"):
        if not known.size:
            reasons[name] = "no case has a value"
        elif name == "sd" and known.size == 1:
            reasons[name] = "one value has no standard deviation"
        elif not math.isfinite(found[name]):
            reasons[name] = "infinite, since the images of at least one case are identical"
    numbers = {
        name: None if name in reasons else found[name] for name in ("mean", "sd", "median", "q1", "q3", "min", "max")
    }
    return {**numbers, "n": int(known.size), "n_undefined": int(everything.size - known.size), "reasons": reasons}


def _quantile(ordered: npt.NDArray[np.float64], q: float) -> float:
    """Linear interpolation; unlike numpy's, right where the upper neighbor is infinite but has no weight."""
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    fraction = position - below
    if fraction == 0:
        return float(ordered[below])
    return float((1 - fraction) * ordered[below] + fraction * ordered[below + 1])


def _write(folder: Path, result: Evaluation) -> None:
    """Write both files; the summary goes last, so where there is one it belongs to the table beside it."""
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    with (
        atomic_file(folder / CASES_FILE) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        table = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        for name, case in result.cases.items():
            values = {metric: repr(score.value) for metric, score in case.scores.items()}
            rest = {"voxels": case.voxels, "mask": case.mask, "notes": "; ".join(case.notes)}
            table.writerow({"case": name, **values, **rest})
        for name, reason in result.failed.items():
            table.writerow({"case": name, "notes": f"failed: {reason}"})
    write_json(folder / SUMMARY_FILE, result.summary)
