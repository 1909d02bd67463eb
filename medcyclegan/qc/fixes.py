"""Safe repairs, written as a copy: only where there is one right answer that can be determined.

- CT stored as HU + 1024: 1024 is subtracted. Detected by `hu_offset`, from air and soft tissue.
- NaN and infinite voxels outside the body: air, -1024 HU in CT and the smallest value in MR. Not inside the body.
- CT padding below -1100 HU: everything below -1024 becomes -1024.

Nothing else is touched: a missing intercept of another size, exchanged axes, 8-bit values and doubtful units cannot
be corrected from the voxels alone.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from medcyclegan.io.nifti import kept_fields
from medcyclegan.io.reader import VOLUME_SUFFIXES, read_values
from medcyclegan.io.writer import to_int16, write_volume
from medcyclegan.survey.volume import Survey

AIR_HU = -1024.0


def repair(survey: Survey, modality: str, target: Path) -> list[str]:
    """Write a repaired copy.

    Args:
        survey: of the volume.
        modality: "MR" or "CT".
        target: a file that does not exist, in a format of `write_volume`. Its type is int16 where all values are whole
            numbers that fit, else float32.

    Returns:
        What was done, one sentence each.

    Raises:
        ValueError: nothing can be repaired safely.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, grid, meta = read_values(survey.file)
    done = []
    if modality == "CT" and survey.kind == "hu_offset":
        values = values - np.float32(1024)
        done.append("1024 taken off every voxel")
    missing = ~np.isfinite(values)
    if missing.any():
        if survey.not_finite_inside != 0:
            raise ValueError(f"{survey.file}: voxels in the body are not finite")
        air = AIR_HU if modality == "CT" else float(values[~missing].min())
        values = np.where(missing, np.float32(air), values)
        done.append(f"{int(missing.sum())} voxels that were NaN or infinite set to {air:g}")
    if modality == "CT" and survey.padding:
        low = values < AIR_HU
        values = np.where(low, np.float32(AIR_HU), values)
        done.append(f"{int(low.sum())} voxels below {AIR_HU:g} HU set to {AIR_HU:g}")
    if not done:
        raise ValueError(f"{survey.file}: nothing can be mended safely")
    whole = bool((values == np.rint(values)).all() and values.min() >= -32768 and values.max() <= 32767)
    write_volume(
        target,
        to_int16(values) if whole else values.astype(np.float32),
        grid,
        description="mended",
        nifti=kept_fields(meta),
    )
    return done


def target_name(file: Path, case: str) -> str:
    """The name of the copy: that of the file, or the case's with .nii.gz where the source is DICOM."""
    return file.name if file.name.lower().endswith(VOLUME_SUFFIXES) else f"{case}.nii.gz"
