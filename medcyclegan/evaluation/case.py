"""Score one case: read its volumes, check them, bring them onto one grid, and compute the scores."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medcyclegan.errors import InputError
from medcyclegan.evaluation import range_error as ranges
from medcyclegan.evaluation.doubts import difference_doubts, value_doubts
from medcyclegan.evaluation.metrics.histogram import wasserstein
from medcyclegan.evaluation.metrics.mae import mae, me, rmse
from medcyclegan.evaluation.metrics.ms_ssim import ms_ssim
from medcyclegan.evaluation.metrics.psnr import psnr
from medcyclegan.evaluation.metrics.score import Limits, Mask, Score, Volume, undefined
from medcyclegan.evaluation.metrics.similarity import gradient_similarity, mutual_information, ncc
from medcyclegan.evaluation.metrics.ssim import ssim
from medcyclegan.evaluation.metrics.surfaces import bone_metric_names, bone_scores
from medcyclegan.evaluation.metrics.tissue import TISSUE_METRICS, Tissues, tissue_scores
from medcyclegan.evaluation.pairing import CaseFiles
from medcyclegan.evaluation.protocol import Protocol
from medcyclegan.evaluation.scoring import Scoring
from medcyclegan.evaluation.segmentation import LABEL_METRICS, Labels, label_scores, region_of
from medcyclegan.io.formats import describe, suffix_of
from medcyclegan.io.grid import Grid, reordered
from medcyclegan.io.nifti import kept_fields
from medcyclegan.io.plausible import refuse_impossible_hu
from medcyclegan.io.reader import grid_of, read_mask, read_volume
from medcyclegan.io.writer import write_volume
from medcyclegan.transforms.body import body_mask
from medcyclegan.transforms.geometry import resample
from medcyclegan.transforms.registration import AIR_HU, align, apply

Metric = Callable[[Volume, Volume, Mask | None, Limits], Score]

# Everything that compares two volumes by their values alone. The first are the challenges', the rest are `native`'s.
METRICS: dict[str, Metric] = {
    "mae": mae,
    "psnr": psnr,
    "ssim": ssim,
    "ms_ssim": ms_ssim,
    "me": me,
    "rmse": rmse,
    "ncc": ncc,
    "mutual_information": mutual_information,
    "gradient_similarity": gradient_similarity,
    "wasserstein": wasserstein,
}
REGISTRATION_METRICS = ("misregistration_mm",)
MOVED_METRICS = ("shift_mm", "rotation_deg")
_ON_DEVICE = ("ssim", "ms_ssim")


@dataclass(frozen=True)
class Case:
    """The scores of one case.

    Attributes:
        scores: metric name to score.
        voxels: number of voxels in the mask.
        mask: "given", or "body" where the reference's body was used for want of a mask.
        notes: doubts about the volumes, what was done to them, and the reason of every score that is not finite.
        angles: quantity to gantry angle to (mean, 95th percentile of |range error|, mean range error), mm.
        classes: class of the label maps to (Dice, HD95 in mm).
        doubtful: number of notes that are doubts; they come first.
    """

    scores: Mapping[str, Score]
    voxels: int
    mask: str
    notes: tuple[str, ...] = ()
    angles: Mapping[str, Mapping[float, tuple[float, float, float]]] = field(default_factory=dict)
    classes: Mapping[int, tuple[Score, Score]] = field(default_factory=dict)
    doubtful: int = 0


def metric_names(scoring: Scoring, *, labels: bool = False) -> tuple[str, ...]:
    """Every score of a case, in the order in which they are shown."""
    protocol = scoring.rules
    names = [*protocol.metrics]
    if "intensity" in protocol.families:
        names += METRICS
    if "tissue" in protocol.families:
        names += TISSUE_METRICS
    if "bone" in protocol.families:
        names += bone_metric_names(scoring.bone)
    if "range" in protocol.families:
        names += [f"{ranges.QUANTITIES[q]}_{m}_mm" for q in scoring.calibration for m in ("mean", "p95")]
    if labels:
        names += LABEL_METRICS
    names += REGISTRATION_METRICS
    if scoring.register:
        names += MOVED_METRICS
    return tuple(dict.fromkeys(names))


def score_case(
    reference: Volume,
    synthetic: Volume,
    mask: Mask | None,
    protocol: Protocol,
    *,
    tissues: Tissues | None = None,
    device: str = "cpu",
) -> dict[str, Score]:
    """Every voxel-wise metric of the protocol on one case.

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU, on the same grid.
        mask: (X, Y, Z), voxels above 0 count; None for all.
        protocol: which metrics, and the HU range.
        tissues: thresholds of the errors per tissue; None for -200 and 200 HU.
        device: where SSIM and MS-SSIM are computed, such as "cpu" or "cuda".

    Returns:
        Metric name to score, the headline metrics of the protocol first.

    Raises:
        ValueError: the shapes differ or are not three-dimensional, or the protocol names an unknown metric.
    """
    unknown = [name for name in protocol.metrics if name not in METRICS and name not in TISSUE_METRICS]
    if unknown:
        raise ValueError(
            f"protocol {protocol.name} names unknown metrics {unknown}; there are {[*METRICS, *TISSUE_METRICS]}"
        )
    limits = (protocol.low, protocol.high)
    names = [*protocol.metrics, *(METRICS if "intensity" in protocol.families else ())]
    found = {}
    for name in dict.fromkeys(names):
        if name in _ON_DEVICE:
            metric = ssim if name == "ssim" else ms_ssim
            found[name] = metric(reference, synthetic, mask, limits, device=device)
        elif name in METRICS:
            found[name] = METRICS[name](reference, synthetic, mask, limits)
    per_tissue = {}
    if "tissue" in protocol.families or set(protocol.metrics) & set(TISSUE_METRICS):
        per_tissue = tissue_scores(reference, synthetic, mask, tissues or Tissues())
    headline = {name: found.get(name) or per_tissue[name] for name in protocol.metrics}
    return {**headline, **found, **(per_tissue if "tissue" in protocol.families else {})}


def grade(name: str, files: CaseFiles, scoring: Scoring, maps: Path | None = None) -> Case:
    """Read and grade one case.

    Args:
        name: case id.
        files: what is compared.
        scoring: how.
        maps: folder for a map of its range errors; None writes none.

    Raises:
        InputError: a file cannot be read, or the files do not lie on one grid.
    """
    protocol = scoring.rules
    synthetic, synthetic_grid, warned = _read("prediction", files.pred)
    reference, grid, also_warned = _read("reference", files.ref)
    done = []
    reaches = None
    turned = reordered(synthetic, synthetic_grid, grid)
    if turned is not None:
        if turned is not synthetic:
            done.append("axes of the prediction exchanged or reversed to those of the reference; no value changes")
        synthetic = np.ascontiguousarray(turned)
    elif scoring.resample:
        reaches = resample(np.ones(synthetic_grid.shape, bool), synthetic_grid, grid, fill=0, mode="nearest")
        synthetic = resample(synthetic, synthetic_grid, grid, fill=AIR_HU)
        done.append(f"prediction resampled (linear) from {_words(synthetic_grid)} onto the grid of the reference")
    else:
        raise InputError(_grids_differ(files.pred, synthetic_grid, files.ref, grid))
    inside = body_mask(reference, grid.spacing.tolist(), "CT") if files.mask is None else read_mask(files.mask, grid)
    if reaches is not None and (outside := int(np.count_nonzero(inside & ~reaches))):
        done.append(f"{outside} voxel(s) of the mask lie outside the prediction and count as air")
    doubts = [
        *also_warned,
        *value_doubts("reference", reference, inside),
        *warned,
        *value_doubts("prediction", synthetic, inside),
        *difference_doubts(reference, synthetic, inside),
    ]
    apart = align(reference, synthetic, inside, grid)
    placed = {"misregistration_mm": undefined(apart.reason) if apart.reason else Score(apart.displacement)}
    if scoring.register:
        moved = align(reference, synthetic, inside, grid, fine=True)
        if moved.reason:
            raise InputError(f"The prediction could not be registered to its reference: {moved.reason}.")
        placed |= {"shift_mm": Score(moved.shift_length), "rotation_deg": Score(moved.rotation)}
        done.append(
            "prediction moved rigidly onto the reference before grading: its content lay "
            f"({', '.join(f'{part:.2f}' for part in moved.shift)}) mm to the right, front and top, turned by "
            f"{moved.rotation:.2f} degrees"
        )
        synthetic = apply(moved, synthetic, grid)
    scores = score_case(reference, synthetic, inside, protocol, tissues=scoring.tissues, device=scoring.device)
    if "bone" in protocol.families:
        scores |= bone_scores(reference, synthetic, inside, grid.affine[:3, :3], scoring.bone)
    angles: Mapping[str, Mapping[float, tuple[float, float, float]]] = {}
    if "range" in protocol.families:
        target = None if files.target is None else read_mask(files.target, grid)
        error = ranges.range_error(
            reference,
            synthetic,
            inside,
            grid,
            target=target,
            angles=scoring.angles,
            calibration=scoring.calibration,
        )
        scores |= error.scores
        angles = error.per_angle
        if maps is not None and "wepl" in error.map:
            _write_map(maps / f"{name}.nii.gz", error, grid, files.ref)
    classes: dict[int, tuple[Score, Score]] = {}
    if files.pred_labels is not None and files.ref_labels is not None:
        labels = label_scores(
            _read_labels(files.ref_labels, grid),
            _read_labels(files.pred_labels, grid),
            grid.affine[:3, :3],
            region=region_of(name),
            as_organizers=protocol.organizers,
        )
        scores |= labels.scores
        done += labels.notes
        classes = {label: (value.dice, value.hd95) for label, value in labels.classes.items()}
    scores |= placed
    return Case(
        scores,
        int(np.count_nonzero(inside)),
        "body" if files.mask is None else "given",
        (*doubts, *done, *_reasons(scores)),
        angles,
        classes,
        len(doubts),
    )


def read_hu(path: str | os.PathLike[str]) -> tuple[npt.NDArray[np.float32], Grid, list[str]]:
    """A CT: its HU (X, Y, Z), its grid, and the reader's warnings.

    Raises:
        InputError: the file cannot be read, or holds values that no CT has.
    """
    array, grid, remarks = _read_warned(path)
    refuse_impossible_hu(float(array.min()), float(array.max()), str(path))
    return array, grid, remarks


def _read_warned(path: str | os.PathLike[str]) -> tuple[npt.NDArray[np.float32], Grid, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_volume(path)
    # MONAI's warnings about its own optional packages are not about the file.
    remarks = [
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, UserWarning) and "monai" not in Path(warning.filename).parts
    ]
    array: npt.NDArray[np.float32] = volume.numpy()[0]
    return array, grid_of(volume), remarks


def _read(kind: str, path: Path) -> tuple[npt.NDArray[np.float32], Grid, list[str]]:
    array, grid, remarks = read_hu(path)
    return array, grid, [f"{kind}: {line}" for line in remarks]


def _read_labels(path: Path, grid: Grid) -> Labels:
    array, own, _ = _read_warned(path)
    turned = reordered(array, own, grid)
    if turned is None:
        raise InputError(
            f"The label map {path} lies on another grid than its case: {_words(own)} against {_words(grid)}.",
            "Resample it (nearest neighbor) onto the grid of the reference.",
        )
    labels = turned.astype(np.int32)
    if (labels != turned).any() or (labels < 0).any():
        raise InputError(f"{path}: a label map holds whole numbers of at least 0.")
    return labels


def _write_map(path: Path, error: ranges.RangeError, grid: Grid, reference: Path) -> None:
    """The mean over the angles of |range error| in mm at the target voxels; nan elsewhere, where nothing was asked."""
    volume = np.full(grid.shape, np.nan, dtype=np.float32)
    volume[tuple(error.targets.T)] = error.map["wepl"]
    shown = kept_fields(describe(reference).meta) if suffix_of(reference) else None
    write_volume(path, volume, grid, description="mean |WEPL difference| over angles, mm", nifti=shown)


def _words(grid: Grid) -> str:
    return f"{' x '.join(map(str, grid.shape))} voxels of {' x '.join(f'{s:.4g}' for s in grid.spacing)} mm"


def _grids_differ(pred: Path, pred_grid: Grid, ref: Path, ref_grid: Grid) -> str:
    apart = ""
    if pred_grid.shape == ref_grid.shape:
        apart = f"; voxels of the same index lie up to {pred_grid.distance(ref_grid):.4g} mm apart"
    return (
        f"The prediction {pred} and the reference {ref} lie on different grids: {_words(pred_grid)} against "
        f"{_words(ref_grid)}{apart}. Nothing is resampled unless you ask for it with --resample."
    )


def _reasons(scores: Mapping[str, Score]) -> list[str]:
    metrics: dict[str, list[str]] = defaultdict(list)
    for name, score in scores.items():
        if score.reason:
            metrics[score.reason].append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in metrics.items()]
