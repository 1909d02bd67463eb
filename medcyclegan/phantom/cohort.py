"""Cohorts: a folder of scans of many heads, with the variety of headers, scalings and tables that real ones have."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medcyclegan.atomic import atomic_folder
from medcyclegan.errors import raise_all
from medcyclegan.phantom.anatomy import Affine, Head, head, rotation
from medcyclegan.phantom.fields import Floats
from medcyclegan.phantom.scan import SEQUENCES_MS, Phantom, sample


@dataclass(frozen=True)
class Cohort:
    """Paths of a written cohort, each sorted by name; the three `test_*` tuples hold the same cases in the same order.

    Attributes:
        folder: the folder that holds everything.
        train_mr, train_ct: volumes of different heads.
        test_mr, test_ct, test_mask: volumes of the same heads on the same grid; the mask is 1 in the body.
    """

    folder: Path
    train_mr: tuple[Path, ...]
    train_ct: tuple[Path, ...]
    test_mr: tuple[Path, ...]
    test_ct: tuple[Path, ...]
    test_mask: tuple[Path, ...]


# What the headers go through, one after the other: axis codes, tilt in degrees, slice thickness relative to the
# nominal one, and slope and intercept of the CT.
_AXES = ("RAS", "LPS", "PIL", "LAS", "ASR", "RPI")
_TILT = (0.0, 4.0, -6.0, 0.0, 2.5)
_THICKER = (1.0, 1.0, 1.2, 1.1)
_SCALING = ((1.0, 0.0), (1.0, -1024.0), (0.5, -1024.0))


def write_cohort(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    train_mr: int = 6,
    train_ct: int = 6,
    test: int = 3,
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 4.0),
    shape: tuple[int, int, int] = (72, 88, 40),
    contrast: Literal["t1", "t2"] = "t1",
) -> Cohort:
    """Write an unpaired training and a paired test set of head phantoms as NIfTI; the same call, the same bytes.

    The files are `train/mr/mr_001.nii.gz`, `train/ct/ct_001.nii.gz`, `test/mr/case_001.nii.gz`,
    `test/ct/case_001.nii.gz` and `test/mask/case_001.nii.gz`, and so on. MR is float32, CT int16 HU, the mask uint8.
    Axis order, tilt, slice thickness (with fewer slices, so that the field of view stays) and the CT's
    slope and intercept vary from file to file. Every second training CT has a table below the head.
    Two calls that differ in `contrast` alone show the same heads on the same grids: several contrasts of one patient.

    Args:
        folder: where to write; must not exist yet, or be empty.
        seed: at least 0; every head of the cohort follows from it.
        train_mr, train_ct, test: how many heads of each; no head is in two sets.
        spacing_mm: voxel size to the right, to the front and to the top.
        shape: voxels along the same directions. The top of the grid lies above the vertex, the rest follows.
        contrast: weighting of the MR.

    Raises:
        InputError: an argument out of range, or a folder that already holds something.
    """
    target = Path(folder)
    counts = (train_mr, train_ct, test)
    raise_all(_problems(target, seed, counts, spacing_mm, shape, contrast), "cannot write the phantom cohort:")
    written: dict[str, list[Path]] = {"train/mr": [], "train/ct": [], "test/mr": [], "test/ct": [], "test/mask": []}
    with atomic_folder(target) as temporary:
        for stage, (part, count) in enumerate(zip(("train/mr", "train/ct", "test"), counts, strict=True)):
            for number in range(count):
                subject = head(int(np.random.SeedSequence([seed, stage, number]).generate_state(1)[0]))
                # The sets start at different places, so that no header belongs to one modality.
                variant = number + 2 * stage
                scan = sample(subject, *_grid(subject, shape, spacing_mm, variant))
                ct = _with_table(subject, scan) if part == "train/ct" and number % 2 else scan.ct
                slope, intercept = _SCALING[variant % len(_SCALING)]
                files: dict[str, tuple[npt.NDArray[Any], type, float, float]] = {
                    "mr": (scan.mr_t1 if contrast == "t1" else scan.mr_t2, np.float32, 1.0, 0.0),
                    "ct": (ct, np.int16, slope, intercept),
                    "mask": (scan.body, np.uint8, 1.0, 0.0),
                }
                for kind in ("mr", "ct", "mask") if part == "test" else (part[-2:],):
                    place = f"{part}/{kind}" if part == "test" else part
                    name = f"{place}/{'case' if part == 'test' else kind}_{number + 1:03d}.nii.gz"
                    _write_nifti(temporary / name, scan.affine, *files[kind])
                    written[place].append(target / name)
    return Cohort(target, *(tuple(paths) for paths in written.values()))


def _problems(
    target: Path,
    seed: int,
    counts: tuple[int, ...],
    spacing: tuple[float, ...],
    shape: tuple[int, ...],
    contrast: str,
) -> Iterator[str]:
    if target.exists() and not target.is_dir():
        yield f"{target} is a file; give a folder that does not exist yet."
    elif target.is_dir() and any(target.iterdir()):
        yield f"{target} already holds files, and nothing is overwritten; give a new folder or empty this one."
    if seed < 0:
        yield f"seed is {seed}; it must be at least 0."
    if min(counts) < 0 or sum(counts) == 0:
        yield f"train_mr, train_ct and test are {counts}; none may be negative, and one must be at least 1."
    if len(spacing) != 3 or not all(0 < value < 50 for value in spacing):
        yield f"spacing_mm is {spacing}; give three numbers above 0 and below 50."
    if len(shape) != 3 or min(shape, default=0) < 1:
        yield f"shape is {shape}; give three numbers of voxels, each at least 1."
    if contrast not in SEQUENCES_MS:
        yield f"contrast is {contrast!r}; choose one of {', '.join(SEQUENCES_MS)}."


def _grid(
    head: Head, shape: tuple[int, int, int], spacing: tuple[float, float, float], variant: int
) -> tuple[tuple[int, int, int], Affine]:
    """Shape and affine of a scan with the vertex of the head near the top; variant 0 is RAS without tilt."""
    thicker = _THICKER[variant % len(_THICKER)]
    size = (shape[0], shape[1], max(1, round(shape[2] / thicker)))
    steps = np.array(spacing) * (1, 1, thicker)
    tilt = np.radians(_TILT[variant % len(_TILT)])
    affine = np.eye(4)
    affine[:3, :3] = rotation(np.array([tilt, tilt / 2, -tilt / 2])) @ np.diag(steps)
    # Slices start 9 mm above the vertex; in the plane the head is in the middle, with room for a table.
    center, upward = head.world((0, -8, 0)), affine[:3, 2] / steps[2]
    middle = center + upward * (upward @ (head.world((0, -10, 104)) - center) - size[2] * steps[2] / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(_AXES[variant % len(_AXES)])
    )
    permuted = [0, 0, 0]
    for source, axis in enumerate(turn[:, 0].astype(int)):
        permuted[axis] = size[source]
    return (permuted[0], permuted[1], permuted[2]), affine @ nib.orientations.inv_ornt_aff(turn, size)


def _with_table(head: Head, scan: Phantom) -> Floats:
    """The CT with a curved table below the head: foam between two thin shells."""
    index = np.indices(scan.shape, dtype=np.float32).reshape(3, -1)
    x, y = scan.affine[:2, :3] @ index + scan.affine[:2, 3:]
    x -= head.pose[0, 3]
    radius, thickness, shell_mm = 320.0, 20.0, 2.0
    bottom = head.world((0, -121, 0))[1] - 6
    depth = np.hypot(x, y - bottom - radius) - radius  # mm below the upper face of the table
    voxel = float(np.linalg.norm(scan.affine[:3, :3], axis=0).min())
    to_face = np.abs(depth - thickness / 2) - thickness / 2
    foam = np.clip(0.5 - to_face / voxel, 0, 1)
    shell = np.clip(0.5 + (shell_mm / 2 - np.abs(to_face + shell_mm / 2)) / voxel, 0, min(1, shell_mm / voxel))
    # HU above air: foam -940, carbon fiber -100.
    added = np.where((y < 0.5 * radius + bottom) & ~scan.body.ravel(), 60 * foam + 840 * shell, 0)
    return np.clip(scan.ct + added.reshape(scan.shape), -1024, 3071).astype(np.float32)


def _write_nifti(
    path: Path, affine: Affine, values: npt.NDArray[Any], dtype: type, slope: float, intercept: float
) -> None:
    """Write NIfTI-1 with the given slope and intercept; nibabel's own writer would choose them itself."""
    stored = values if dtype is np.float32 else np.rint((values.astype(np.float64) - intercept) / slope)
    header = nib.Nifti1Header()
    header.set_data_shape(values.shape)
    header.set_data_dtype(dtype)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    header.set_xyzt_units("mm")
    header.set_slope_inter(slope, intercept)
    header["vox_offset"] = 352
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a name and a time in the gzip header the same voxels give the same file.
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=4, mtime=0) as stream:
        header.write_to(stream)
        stream.write(stored.astype(dtype).tobytes(order="F"))
