"""What bytes mean by the definition of their format, told by readers that share no code with the program.

A meaning is *undefined* where the definition gives the bytes none: the program must refuse them. It is *doubtful* where
the definition leaves a choice, or programs differ: the program must refuse or warn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

# The stream around a volume is damaged so early that its header may be lost with it, or not.
STREAM = "a damaged stream"


class Undefined(Exception):
    """The definition of the format gives these bytes no meaning."""


@dataclass
class Meaning:
    """A volume.

    Attributes:
        shape: (X, Y, Z).
        affine: voxel index to RAS+ mm; None where the file does not say.
        values: (X, Y, Z) float64, as the file scales them; None where they are damaged behind a sound header.
        doubts: why the program must refuse or warn.
    """

    shape: tuple[int, ...]
    affine: np.ndarray | None
    values: np.ndarray | None
    doubts: list[str] = field(default_factory=list)


def need(condition: object, reason: str) -> None:
    if not condition:
        raise Undefined(reason)


def number(text: str) -> float:
    """A finite decimal number, strictly: no comma, no underscore, no words."""
    need(_NUMBER.fullmatch(text.strip()), f"'{text}' is no number")
    value = float(text)
    need(np.isfinite(value), f"{text} is too large")
    return value


def numbers(text: str, count: int) -> np.ndarray:
    words = text.split()
    need(len(words) == count, f"{count} numbers are needed, not '{text}'")
    return np.array([number(word) for word in words])


def whole(text: str) -> int:
    need(re.fullmatch(r"[+-]?\d+", text.strip(), re.ASCII) and len(text) < 30, f"'{text}' is no whole number")
    return int(text)


def corners(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Where the eight outermost voxels lie, (3, 8)."""
    index = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), dtype=np.float64).reshape(3, -1)
    return np.asarray(affine[:3, :3] @ index + affine[:3, 3:])


def apart(shape: tuple[int, ...], one: np.ndarray, other: np.ndarray, allowed_mm: float) -> bool:
    """True where voxels of the same index lie further apart than this, and than the rounding of float32 numbers."""
    with np.errstate(all="ignore"):
        here, there = corners(shape, one), corners(shape, other)
        return not np.abs(here - there).max() <= allowed_mm + 1e-6 * np.abs(here).max()


def require_volume(shape: tuple[int, ...], affine: np.ndarray | None) -> None:
    need(len(shape) == 3 and min(shape) >= 1, f"{shape} is no volume")
    if affine is not None:
        need(np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0, "no place in space")
