"""Scans: CT and MR of a head on a voxel grid, and the properties of the tissues that they show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcyclegan.phantom.anatomy import Affine, Head, Tissue
from medcyclegan.phantom.fields import Floats, Waves, draw_waves

# Per tissue: HU and its standard deviation within the tissue (typical of head CT at 120 kVp), then proton density, T1
# and T2 in ms at 1.5 T. The latter are BrainWeb's (Kwan et al., IEEE TMI 18:1085, 1999, tissue_mr_parameters.txt), with
# these exceptions: skin takes BrainWeb's "muscle/skin"; the eye is CSF-like; the lesion takes BrainWeb's MS lesion;
# marrow is that of a vertebra (de Bazelaire et al., Radiology 230:652, 2004); a T2 of 0.5 ms leaves cortical bone and
# teeth dark (Robson et al., J Comput Assist Tomogr 27:825, 2003).
_PROPERTIES: dict[Tissue, tuple[float, float, float, float, float]] = {
    Tissue.OUTSIDE: (-1000, 0, 0, 1, 1),
    Tissue.CAVITY: (-1000, 0, 0, 1, 1),
    Tissue.SKIN: (45, 6, 1.0, 900, 47),
    Tissue.FAT: (-100, 8, 1.0, 350, 70),
    Tissue.MUSCLE: (55, 6, 1.0, 900, 47),
    Tissue.BONE: (1300, 90, 0.2, 200, 0.5),
    Tissue.MARROW: (400, 70, 0.6, 549, 49),
    Tissue.CSF: (8, 1, 1.0, 2569, 329),
    Tissue.GRAY: (37, 2, 0.86, 833, 83),
    Tissue.WHITE: (28, 2, 0.77, 500, 70),
    Tissue.EYE: (10, 1, 1.0, 2569, 329),
    Tissue.TOOTH: (2000, 150, 0.1, 200, 0.5),
    Tissue.LESION: (20, 4, 0.76, 752, 237),
}
HU: dict[Tissue, float] = {tissue: row[0] for tissue, row in _PROPERTIES.items()}
"""Mean HU of each tissue."""

CT_NOISE_HU = 12.0
"""Standard deviation of the CT noise."""
MR_SNR = 35.0
"""Signal of white matter over the standard deviation of the noise in each of the two channels of the MR."""
_CT_BLUR_MM = 0.6  # standard deviation of the point spread function
_MR_TEXTURE = 0.03  # standard deviation of the signal within a tissue, as a part of it
_MR_BIAS = 0.2  # the receive field stays within 1 +- this
SEQUENCES_MS = {"t1": (500.0, 12.0), "t2": (4000.0, 95.0)}  # TR and TE


def spin_echo(contrast: Literal["t1", "t2"]) -> Floats:
    """Signal of every tissue, in the order of `Tissue`, where a proton density of 1 that fully recovers gives 1.

    S = PD (1 - exp(-TR / T1)) exp(-TE / T2): Haacke et al., Magnetic Resonance Imaging: Physical Principles and
    Sequence Design (1999), the spin echo with TE much shorter than TR.
    """
    tr, te = SEQUENCES_MS[contrast]
    _, _, density, t1, t2 = np.array([_PROPERTIES[tissue] for tissue in Tissue]).T
    return (density * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A head on a voxel grid; all arrays have the same shape (X, Y, Z).

    Attributes:
        ct: float32, HU, within [-1024, 3071].
        mr_t1: float32, T1-weighted spin echo, arbitrary units, at least 0.
        mr_t2: float32, T2-weighted spin echo, arbitrary units, at least 0.
        labels: uint8, the `Tissue` that fills most of the voxel.
        body: bool, True where more than half of the voxel is head, the air in it included.
        affine: 4 x 4 float64, voxel index to world (RAS+ mm).
        shape: (X, Y, Z).
    """

    ct: Floats
    mr_t1: Floats
    mr_t2: Floats
    labels: npt.NDArray[np.uint8]
    body: npt.NDArray[np.bool_]
    affine: Affine
    shape: tuple[int, int, int]


def sample(head: Head, shape: tuple[int, int, int], affine: npt.ArrayLike, supersample: int = 2) -> Phantom:
    """Scan a head.

    Args:
        head: what to scan.
        shape: voxels along the three axes.
        affine: 4 x 4, voxel index (centers) to world (RAS+ mm); may be flipped, permuted, oblique or anisotropic.
        supersample: points per axis in each voxel, whose tissues mix linearly.

    Returns:
        CT and MR of the same voxels. Noise, receive field and gain depend on the head and the shape only.

    Raises:
        ValueError: a shape or an affine that is no grid, or a `supersample` below 1.
    """
    affine = np.array(affine, dtype=np.float64)
    if len(shape) != 3 or min(shape) < 1 or supersample < 1:
        raise ValueError(f"need three axes of at least one voxel and supersample >= 1, got {shape} and {supersample}")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"need a finite, invertible 4 x 4 affine, got\n{affine}")
    tables = np.array([[row[0], row[1]] for row in (_PROPERTIES[tissue] for tissue in Tissue)], np.float32).T
    tables = np.vstack([tables, spin_echo("t1"), spin_echo("t2")])
    mixed, labels, body = _mix(head, shape, affine, supersample, tables)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rng = np.random.default_rng([head.seed, 1])
    texture = _field(draw_waves(rng, 11, count=6), shape, affine)
    ct = ndimage.gaussian_filter(mixed[0] + mixed[1] * texture, _CT_BLUR_MM / spacing, mode="nearest")
    ct += CT_NOISE_HU * rng.standard_normal(shape, dtype=np.float32)
    white = int(Tissue.WHITE)
    t1 = _receive(rng, mixed[2], float(tables[2, white]), texture, affine)
    t2 = _receive(rng, mixed[3], float(tables[3, white]), texture, affine)
    return Phantom(np.clip(ct, -1024, 3071), t1, t2, labels, body, affine, shape)


def _receive(rng: np.random.Generator, signal: Floats, white: float, texture: Floats, affine: Affine) -> Floats:
    """The magnitude image from the ideal signal: texture, receive field, noise of both channels, gain."""
    bias = draw_waves(rng, 220, count=4)
    # With weights that sum to 1 the field cannot leave 1 +- _MR_BIAS.
    bias = Waves(bias.vectors, bias.phases, bias.weights / np.abs(bias.weights).sum())
    level = signal * (1 + _MR_TEXTURE * texture) * (1 + np.float32(_MR_BIAS) * _field(bias, signal.shape, affine))
    noise = np.float32(white / MR_SNR)
    level += noise * rng.standard_normal(signal.shape, dtype=np.float32)
    other = noise * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.asarray(np.hypot(level, other) * np.float32(1000 * np.exp(rng.uniform(-0.7, 0.7))), dtype=np.float32)


def _field(waves: Waves, shape: tuple[int, ...], affine: Affine) -> Floats:
    """A smooth field of the world at the voxel centers."""
    result = np.empty(shape, np.float32)
    for where in _blocks(shape):
        result[where] = waves(_points(where, affine, 1)).reshape(result[where].shape)
    return result


def _blocks(shape: tuple[int, ...], supersample: int = 1) -> Iterator[tuple[slice, ...]]:
    """Cut a grid into blocks of at most 24 points per axis: larger ones leave the cache and cost twice the time."""
    edge = max(1, 24 // supersample)
    for corner in np.ndindex(*(-(-n // edge) for n in shape)):
        yield tuple(slice(c * edge, min((c + 1) * edge, n)) for c, n in zip(corner, shape, strict=True))


def _points(where: tuple[slice, ...], affine: Affine, supersample: int) -> Floats:
    """World points (3, N) of the voxels of a block, each divided in supersample ** 3, last axis fastest."""
    axes = [(np.arange(s.start * supersample, s.stop * supersample) + 0.5) / supersample - 0.5 for s in where]
    index = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    return np.asarray(affine[:3, :3] @ index + affine[:3, 3:], dtype=np.float32)


def _mix(
    head: Head, shape: tuple[int, int, int], affine: Affine, supersample: int, tables: Floats
) -> tuple[Floats, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Average tables (T, tissues) over the points of each voxel: (T, *shape), with the main tissue and the body."""
    mixed = np.empty((len(tables), *shape), np.float32)
    labels = np.empty(shape, np.uint8)
    body = np.empty(shape, np.bool_)
    for where in _blocks(shape, supersample):
        size = labels[where].shape
        tissue = head.tissue_at(_points(where, affine, supersample))
        split = [n for edge in size for n in (edge, supersample)]
        tissue = tissue.reshape(split).transpose(0, 2, 4, 1, 3, 5).reshape(*size, supersample**3)
        present = np.flatnonzero(np.bincount(tissue.ravel(), minlength=len(Tissue)))
        share = np.stack([(tissue == value).mean(axis=-1, dtype=np.float32) for value in present])
        mixed[(slice(None), *where)] = np.tensordot(tables[:, present], share, 1)
        labels[where] = present[share.argmax(axis=0)]
        body[where] = share[present == Tissue.OUTSIDE].sum(axis=0) < 0.5
    return mixed, labels, body
