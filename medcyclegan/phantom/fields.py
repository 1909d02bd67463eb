"""Fields over space in mm, of which heads are made: shapes and smooth random waves.

A *shape* is a field that is negative inside and close to the distance in mm near its surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_Vector = tuple[float, float, float]
_FAR = np.full((), np.inf, np.float32)


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random field: a sum of plane waves of about one wavelength, with mean 0.

    Its zero level is a labyrinth of sheets half a wavelength apart, which is what cortex looks like.
    """

    vectors: Floats  # (K, 3), radians per mm
    phases: Floats  # (K, 1)
    weights: Floats  # (M, K)

    def __call__(self, xyz: Floats) -> Floats:
        """(3, N) mm to (M, N), or to (N,) if M is 1."""
        field = self.weights @ np.sin(self.vectors @ xyz + self.phases)
        return field[0] if len(field) == 1 else field


def draw_waves(
    rng: np.random.Generator, wavelength_mm: float, deviation: float = 1.0, outputs: int = 1, count: int = 8
) -> Waves:
    """Draw `outputs` fields of the same `count` waves, of about the given wavelength and standard deviation."""
    vectors = rng.normal(size=(count, 3))
    vectors *= (
        2 * np.pi / wavelength_mm * rng.lognormal(0, 0.15, (count, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    )
    weights = deviation * np.sqrt(2 / count) * rng.choice([-1.0, 1.0], (outputs, count))
    if outputs > 1:
        weights *= rng.uniform(0.3, 1.4, weights.shape)
    phases = rng.uniform(0, 2 * np.pi, (count, 1))
    return Waves(vectors.astype(np.float32), phases.astype(np.float32), weights.astype(np.float32))


class Points:
    """Points (3, N) of head space in mm; shapes that lie far from all of them cost nothing."""

    def __init__(self, xyz: Floats, bounds: tuple[Floats, Floats] | None = None) -> None:
        self.xyz = xyz
        self.low: Floats = xyz.min(axis=1) if bounds is None else bounds[0]
        self.high: Floats = xyz.max(axis=1) if bounds is None else bounds[1]

    def __getitem__(self, index: npt.NDArray[np.intp]) -> Points:
        return Points(np.take(self.xyz, index, axis=1), (self.low, self.high))

    def touch(self, low: _Vector, high: _Vector) -> bool:
        """False only if none of the points lies in the box."""
        return bool((self.high >= low).all() and (self.low <= high).all())

    def ellipsoid(self, center: _Vector, radii: _Vector, reach: float = 5.0) -> Floats:
        """First-order distance f / |grad f| of f = |p / r|^2 - 1 (Taubin, ACM Trans. Graphics 13:3, 1994).

        Infinite if all points are farther than `reach` from the bounding box.
        """
        middle, half_axes = np.array(center, np.float32), np.array(radii, np.float32)
        if (self.low > middle + half_axes + reach).any() or (self.high < middle - half_axes - reach).any():
            return _FAR
        scaled = (self.xyz - middle[:, None]) / half_axes[:, None]
        value = np.einsum("an,an->n", scaled, scaled)
        scaled /= half_axes[:, None]
        slope = 2 * np.sqrt(np.einsum("an,an->n", scaled, scaled)) + np.float32(1e-6)
        return np.asarray((value - 1) / slope, dtype=np.float32)

    def rod(self, start: _Vector, end: _Vector, radius: float, tip: float | None = None, reach: float = 5.0) -> Floats:
        """Distance to a rod with round ends, whose radius goes linearly from `radius` to `tip`; else as `ellipsoid`."""
        a, b = np.array(start, np.float32), np.array(end, np.float32)
        tip = radius if tip is None else tip
        border = max(radius, tip) + reach
        if (self.low > np.maximum(a, b) + border).any() or (self.high < np.minimum(a, b) - border).any():
            return _FAR
        axis = b - a
        offset = self.xyz - a[:, None]
        along = np.clip(axis @ offset / (axis @ axis), 0, 1)
        offset -= axis[:, None] * along
        return np.asarray(
            np.sqrt(np.einsum("an,an->n", offset, offset)) - (radius + (tip - radius) * along), np.float32
        )

    def arch(self, middle_y: float, radii: tuple[float, float], thick: float, bottom: float, top: float) -> Floats:
        """Distance to a horseshoe open to the back, as the jaws and the rows of teeth: half an elliptic wall."""
        if not self.touch((-radii[0] - 15, middle_y, bottom - 5), (radii[0] + 15, middle_y + radii[1] + 15, top + 5)):
            return _FAR
        x, y, z = self.xyz
        ring = np.abs(np.hypot(x / radii[0], (y - middle_y) / radii[1]) - 1) * min(radii) - thick / 2
        return np.maximum(np.maximum(ring, middle_y - y), np.abs(z - (bottom + top) / 2) - (top - bottom) / 2)


def union(a: Floats, b: Floats, blend_mm: float) -> Floats:
    """Minimum with a rounded seam (quadratic polynomial smooth minimum, I. Quilez, 2013)."""
    if b.ndim == 0:
        return a
    rounding = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.asarray(np.minimum(a, b) - rounding * rounding / (4 * blend_mm), dtype=np.float32)
