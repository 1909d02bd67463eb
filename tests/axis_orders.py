"""The 48 orders of axes that a volume may be stored in, for the laws of space that hold in each of them.

An order is (permutation, signs): axis k of the voxels runs along world axis permutation[k], forward or backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Order = tuple[tuple[int, ...], tuple[float, ...]]
ORDERS: list[Order] = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


def rotation(degrees: float) -> np.ndarray:
    """About the axis (1, 2, -1), (3, 3): by Rodrigues' formula."""
    k = np.array([1.0, 2.0, -1.0]) / np.sqrt(6)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    angle = np.radians(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def affine_of(order: Order, degrees: float = 0.0, spacing: Sequence[float] = (0.7, 1.3, 3.1)) -> np.ndarray:
    """Axis order, then a rotation, with voxels of `spacing` mm along their own axes and an origin off center."""
    axes = np.zeros((3, 3))
    axes[order[0], range(3)] = order[1]
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ axes * np.array(spacing)
    affine[:3, 3] = (-31.3, 55.7, 0.9)
    return affine


def along_axes(order: Order, spacing: Sequence[float]) -> tuple[float, float, float]:
    """The spacing of the voxels in the order of the world's axes."""
    result = np.empty(3)
    result[list(order[0])] = spacing
    return (float(result[0]), float(result[1]), float(result[2]))
