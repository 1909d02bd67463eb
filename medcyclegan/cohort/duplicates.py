"""The same scan under two names: found by what the voxels hold, whatever the format and the order of the axes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.pictures import GrayLevels
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.machine import cores
from medcyclegan.progress import Progress, Silent


@dataclass(frozen=True)
class Fingerprint:
    """What a volume is known by.

    Attributes:
        voxels: BLAKE2b of the float32 values in the order of the axes nearest RAS+, and of their shape. The place in
            space is not in it: a copy whose header was changed is a copy.
        grid: where the voxels lie.
    """

    voxels: str
    grid: Grid


def fingerprints(
    images: Iterable[Path], *, progress: Progress | None = None, workers: int | None = None
) -> tuple[dict[Path, Fingerprint], dict[Path, str]]:
    """Read every volume once, several at a time.

    Args:
        images: files, DICOM folders or choices of a series.
        progress: watches the files.
        workers: threads; by default one per core, at most 8. Each holds one volume in memory.

    Returns:
        Image -> fingerprint, and image -> why it cannot be read.
    """
    listed = sorted(set(images))
    found: dict[Path, Fingerprint] = {}
    failed: dict[Path, str] = {}
    pool = ThreadPoolExecutor(workers or min(8, cores()))
    try:
        # What is odd about a readable volume is told when it is prepared.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = zip(listed, pool.map(_fingerprint, listed), strict=True)
            for image, result in (progress or Silent()).track(results, len(listed), "comparing volumes"):
                if isinstance(result, Fingerprint):
                    found[image] = result
                else:
                    failed[image] = result
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for the rest
    return found, failed


def _fingerprint(image: Path) -> Fingerprint | str:
    try:
        # Whether color is wanted is asked when the volume is prepared; it tells copies apart as well as gray.
        volume = read_volume(image, GrayLevels(gray=True))
    except (InputError, OSError) as error:
        return str(error)
    grid = grid_of(volume)
    array = nib.orientations.apply_orientation(volume.numpy()[0], nib.orientations.io_orientation(grid.affine))
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array, dtype=np.float32).data)
    return Fingerprint(digest.hexdigest(), grid)
