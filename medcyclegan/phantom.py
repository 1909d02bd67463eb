"""Digital head phantoms: registered MR and CT of invented heads, with known HU, for the demo and the tests.

A *head* is a continuous anatomy: it gives the tissue at any point. `sample` looks at it on a voxel grid, and
`write_cohort` writes a folder of such scans. *Head space* is RAS+ mm with the origin in the middle of the brain, about
where the MNI atlas has it; a head's *pose* takes head space to *world* (RAS+ mm). The anatomy is a cartoon: it is
there so that an MR needs anatomy to be turned into HU (cortical bone and air are both dark), not to teach anatomy.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcyclegan.atomic import atomic_folder
from medcyclegan.errors import raise_all

Floats = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]


class Tissue(IntEnum):
    """What a point of the world is; also the values of `Phantom.labels`."""

    OUTSIDE = 0
    """Air around the head."""
    CAVITY = 1
    """Air in the head: nose, sinuses, ears, throat."""
    SKIN = 2
    FAT = 3
    MUSCLE = 4
    """Muscle, mucosa and cartilage."""
    BONE = 5
    """Cortical bone."""
    MARROW = 6
    """Diploe and other spongy bone."""
    CSF = 7
    GRAY = 8
    WHITE = 9
    EYE = 10
    TOOTH = 11
    LESION = 12


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
_SEQUENCES_MS = {"t1": (500.0, 12.0), "t2": (4000.0, 95.0)}  # TR and TE


def spin_echo(contrast: Literal["t1", "t2"]) -> Floats:
    """Signal of every tissue, in the order of `Tissue`, where a proton density of 1 that fully recovers gives 1.

    S = PD (1 - exp(-TR / T1)) exp(-TE / T2): Haacke et al., Magnetic Resonance Imaging: Physical Principles and
    Sequence Design (1999), the spin echo with TE much shorter than TR.
    """
    tr, te = _SEQUENCES_MS[contrast]
    _, _, density, t1, t2 = np.array([_PROPERTIES[tissue] for tissue in Tissue]).T
    return (density * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Waves:
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


def _waves(
    rng: np.random.Generator, wavelength_mm: float, deviation: float = 1.0, outputs: int = 1, count: int = 8
) -> _Waves:
    vectors = rng.normal(size=(count, 3))
    vectors *= (
        2 * np.pi / wavelength_mm * rng.lognormal(0, 0.15, (count, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    )
    weights = deviation * np.sqrt(2 / count) * rng.choice([-1.0, 1.0], (outputs, count))
    if outputs > 1:
        weights *= rng.uniform(0.3, 1.4, weights.shape)
    phases = rng.uniform(0, 2 * np.pi, (count, 1))
    return _Waves(vectors.astype(np.float32), phases.astype(np.float32), weights.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Head:
    """One invented head. Lengths in mm, positions in head space.

    Attributes:
        seed: the number it was drawn from.
        pose: 4 x 4 float64, head space to world; holds size, proportions, rotation and position.
        bend: smooth displacement (3, N) that is added on the way from world to head space.
        folds, relief, cells: fields that shape the cortex, the thickness of skull and fat, and the air cells of bone.
        skull_mm, fat_mm: mean thickness of the vault and of the fat under the skin.
        atrophy_mm: how far the brain has shrunk from the skull.
        ventricles: size relative to the usual.
        sinuses: size of frontal, maxillary and sphenoid sinus relative to the usual.
        lopsided: (3, 1), how far paired parts lie from where symmetry would have them.
        lesion: center and radius of a brain lesion, if there is one.
    """

    seed: int
    pose: Affine
    bend: _Waves
    folds: _Waves
    relief: _Waves
    cells: _Waves
    skull_mm: float
    fat_mm: float
    atrophy_mm: float
    ventricles: float
    sinuses: tuple[float, float, float]
    lopsided: Floats
    lesion: tuple[tuple[float, float, float], float] | None

    def world(self, point: tuple[float, float, float]) -> npt.NDArray[np.float64]:
        """World position (3,) of a point of head space, but for the bend of a few mm."""
        return self.pose[:3, :3] @ np.array(point) + self.pose[:3, 3]

    def tissue_at(self, world: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """`Tissue` (N,) at world points (3, N), RAS+ mm."""
        inverse = np.linalg.inv(self.pose)
        xyz = (inverse[:3, :3] @ np.asarray(world, dtype=np.float64) + inverse[:3, 3:]).astype(np.float32)
        return _tissue(self, xyz + self.bend(xyz))


def head(seed: int) -> Head:
    """Draw a head. The same seed gives the same head."""
    rng = np.random.default_rng([seed, 0])
    angles = np.radians(rng.normal(0, 3.0, 3).clip(-7, 7))
    size = rng.normal(1, 0.03) * rng.normal(1, 0.025, 3)
    pose = np.eye(4)
    pose[:3, :3] = _rotation(angles) @ np.diag(size.clip(0.9, 1.08))
    pose[:3, 3] = rng.uniform(-5, 5, 3)
    lesion = None
    if rng.random() < 0.25:
        place = (rng.choice([-1, 1]) * rng.uniform(22, 42), rng.uniform(-55, 35), rng.uniform(15, 45))
        lesion = ((float(place[0]), float(place[1]), float(place[2])), float(rng.uniform(5, 13)))
    return Head(
        seed=seed,
        pose=pose,
        bend=_waves(rng, 150, 1.3, outputs=3, count=4),
        folds=_waves(rng, 23),
        relief=_waves(rng, 60, count=6),
        cells=_waves(rng, 9, count=6),
        skull_mm=float(rng.uniform(5.5, 8.0)),
        fat_mm=float(rng.uniform(2.0, 5.0)),
        atrophy_mm=float(rng.uniform(0.0, 1.6)),
        ventricles=float(rng.uniform(0.75, 1.45)),
        # Frontal, maxillary and sphenoid sinus; some people have no frontal sinus.
        sinuses=(float(rng.uniform(0.0, 1.2)), float(rng.uniform(0.75, 1.1)), float(rng.uniform(0.7, 1.15))),
        lopsided=rng.normal(0, 1.2, (3, 1)).astype(np.float32),
        lesion=lesion,
    )


def _rotation(angles: npt.NDArray[np.float64]) -> Affine:
    """Rotation (3, 3) by `angles` in radians around x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    around_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(around_z @ around_y @ around_x, dtype=np.float64)


# --- anatomy ---------------------------------------------------------------------------------------------------------
# Every shape is a field that is negative inside and close to the distance in mm near its surface.

_Vector = tuple[float, float, float]
_Labels = npt.NDArray[np.uint8]
_FAR = np.full((), np.inf, np.float32)


class _Points:
    """Points (3, N) of head space in mm; shapes that lie far from all of them cost nothing."""

    def __init__(self, xyz: Floats, bounds: tuple[Floats, Floats] | None = None) -> None:
        self.xyz = xyz
        self.low: Floats = xyz.min(axis=1) if bounds is None else bounds[0]
        self.high: Floats = xyz.max(axis=1) if bounds is None else bounds[1]

    def __getitem__(self, index: npt.NDArray[np.intp]) -> _Points:
        return _Points(np.take(self.xyz, index, axis=1), (self.low, self.high))

    def touch(self, low: _Vector, high: _Vector) -> bool:
        """False only if none of the points lies in the box."""
        return bool((self.high >= low).all() and (self.low <= high).all())

    def ellipsoid(self, center: _Vector, radii: _Vector, reach: float = 5.0) -> Floats:
        """First-order distance f / |grad f| of f = |p / r|^2 - 1 (Taubin, ACM Trans. Graphics 13:3, 1994).

        Infinite where all points are further than `reach` from the bounding box.
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


def _union(a: Floats, b: Floats, blend_mm: float) -> Floats:
    """Minimum with a rounded seam (quadratic polynomial smooth minimum, I. Quilez, 2013)."""
    if b.ndim == 0:
        return a
    rounding = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.asarray(np.minimum(a, b) - rounding * rounding / (4 * blend_mm), dtype=np.float32)


def _tissue(head: Head, xyz: Floats) -> _Labels:
    """`Tissue` (N,) at points (3, N) of head space."""
    result = np.full(xyz.shape[1], Tissue.OUTSIDE, np.uint8)
    whole = _Points(xyz)
    if not whole.touch((-105, -135, -300), (105, 130, 115)):
        return result
    # Paired parts are described once, on the right; left and right differ by a few mm all the same.
    side = np.clip(xyz[:1] / 30, -1, 1) * head.lopsided
    half = _Points((np.stack([np.abs(xyz[0]), xyz[1], xyz[2]]) + side).astype(np.float32, copy=False))
    cranium, cerebrum = _cranium(whole, half)
    skin = _skin(head, whole, half, cranium)
    inside = np.flatnonzero(skin < 0)
    if inside.size:
        result[inside] = _within(head, whole[inside], half[inside], cranium[inside], cerebrum[inside], -skin[inside])
    return result


def _cranium(whole: _Points, half: _Points) -> tuple[Floats, Floats]:
    """Distance to the inner table of the skull: of the whole cranial cavity, and of the part for the cerebrum."""
    x, y, z = whole.xyz
    egg = _Points(np.stack([x * (1 + 0.0016 * (y + 18)), y, z]))  # wider at the back
    vault = -_union(
        -egg.ellipsoid((0, -18, 5), (71, 91, 77), 400), z + 21 + 6 * np.exp(-((x / 18) ** 2)) - 0.05 * np.abs(y - 20), 8
    )
    cerebrum = _union(vault, half.ellipsoid((41, -8, -20), (26, 37, 22), 40), 6)
    behind = _union(
        whole.ellipsoid((0, -62, -34), (54, 37, 30), 400), whole.rod((0, -26, -14), (0, -42, -62), 15, 11, 60), 8
    )
    behind = _union(behind, whole.rod((0, -42, -60), (0, -38, -240), 10, reach=60), 4)
    petrous = half.rod((64, -32, -46), (18, -10, -38), 14, 6, 40)
    return np.maximum(_union(cerebrum, behind, 4), -petrous), np.maximum(cerebrum, -petrous)


def _skin(head: Head, whole: _Points, half: _Points, cranium: Floats) -> Floats:
    """Distance to the surface of the skin."""
    temple = 8 * np.exp(-(((half.xyz[1] - 22) / 28) ** 2) - ((half.xyz[2] + 12) / 30) ** 2) * (half.xyz[0] > 25)
    skin = cranium - (head.skull_mm + head.fat_mm + 3 + temple)
    skin = _union(skin, whole.ellipsoid((0, 28, -60), (65, 60, 62), 50), 14)
    skin = _union(skin, whole.ellipsoid((0, 46, -92), (48, 42, 34), 50), 14)
    skin = _union(skin, whole.ellipsoid((0, 74, -108), (24, 16, 16), 50), 14)  # chin
    skin = _union(skin, whole.rod((0, -26, -50), (0, -36, -240), 58, 60, 60), 22)
    skin = _union(skin, whole.rod((0, 87, -28), (0, 102, -57), 4, 8, 20), 9)
    skin = _union(skin, half.ellipsoid((9, 92, -61), (8, 11, 7), 20), 5)
    skin = _union(skin, whole.ellipsoid((0, 89, -81), (22, 7, 9), 20), 5)  # lips
    ear = half.ellipsoid((84, -28, -36), (8, 19, 32), 20)
    return _union(skin, np.maximum(ear, -half.ellipsoid((93, -20, -37), (9, 11, 20), 20)), 5)


def _within(head: Head, whole: _Points, half: _Points, cranium: Floats, cerebrum: Floats, depth: Floats) -> _Labels:
    """`Tissue` at `depth` mm below the skin: soft tissue first, then bones, cavities and brain painted over it."""
    z, side = whole.xyz[2], half.xyz[0]
    relief = head.relief(whole.xyz)
    fat = head.fat_mm * (1 + 0.35 * relief + 1.2 * np.clip((-50 - z) / 40, 0, 1))
    planes = (np.abs(head.folds(whole.xyz * np.float32(0.8))) < 0.16) & (z < -20)  # fat between the muscles
    result = np.where((depth < 2 + fat) | planes, Tissue.FAT, Tissue.MUSCLE).astype(np.uint8)
    result[depth < 2] = Tissue.SKIN
    _paint_face(result, whole, half)
    _paint_spine(result, whole, half, cranium)

    # The squama of the temporal bone is thin and has no diploe.
    thick = (
        head.skull_mm
        * (1 + 0.18 * relief)
        * (1 - 0.4 * np.clip((side - 45) / 25, 0, 1) * np.clip(3 - np.abs(z) / 15, 0, 1))
    )
    shell = (cranium > 0) & (cranium < thick) & (z > -66) & (depth > 2)
    result[shell] = Tissue.BONE
    result[shell & (cranium > 0.25 * thick) & (cranium < 0.7 * thick) & (thick > 4.5)] = Tissue.MARROW
    _paint_base(head, result, whole, half, cranium)

    brain = np.flatnonzero(cranium < 0)
    if brain.size:
        result[brain] = _brain(head, whole[brain], half[brain], cranium[brain], cerebrum[brain])
    return result


def _paint_face(result: _Labels, whole: _Points, half: _Points) -> None:
    """Bones of the face, jaws and teeth."""
    if not whole.touch((-80, -30, -135), (80, 120, 5)):
        return

    def bone(distance: Floats, wall: float) -> None:
        if distance.ndim:
            result[distance < 0] = Tissue.BONE
            result[distance < -wall] = Tissue.MARROW

    bone(half.rod((68, -10, -44), (67, 20, -47), 3), 1.8)  # zygomatic arch
    bone(half.rod((67, 20, -47), (44, 60, -52), 3, 8), 1.8)
    bone(half.rod((46, 58, -50), (50, 58, -22), 6, 4), 1.8)  # outer rim of the orbit
    bone(half.rod((14, 74, -30), (20, 72, -62), 4, 5), 1.5)  # inner rim
    bone(half.rod((8, 80, -26), (5, 92, -44), 3.5, 2.5), 9)  # nasal bone
    bone(half.ellipsoid((22, 62, -66), (20, 16, 13)), 1.5)  # maxilla
    bone(whole.arch(34, (25, 40), 11, -80, -70), 1.5)
    bone(whole.ellipsoid((0, 44, -71), (22, 30, 3)), 1.2)  # hard palate
    bone(whole.arch(14, (44, 62), 11, -119, -98), 1.8)  # mandible
    bone(half.ellipsoid((47, 8, -80), (4.5, 15, 32)), 1.8)
    bone(half.rod((50, -6, -62), (51, -9, -49), 4, 5.5), 1.5)
    bone(half.rod((16, 12, -52), (20, 14, -70), 3), 9)  # pterygoid process
    for bottom, top in ((-90, -78), (-101, -91)):
        row = whole.arch(34, (25, 40), 8, bottom, top)
        if row.ndim:
            angle = np.arctan2(half.xyz[0] / 25, (whole.xyz[1] - 34) / 40)
            result[(row < 0) & (np.cos(angle * 13) < 0.8)] = Tissue.TOOTH


def _paint_spine(result: _Labels, whole: _Points, half: _Points, canal: Floats) -> None:
    """Cervical vertebrae, one every 17 mm: body, arch around the canal, transverse and spinous processes."""
    if not whole.touch((-40, -95, -300), (40, 0, -66)):
        return
    x, (y, z) = half.xyz[0], whole.xyz[1:]
    level = np.mod(z + 66, 17)
    body = np.maximum(np.hypot(x / 1.25, y + 18) - 10, np.abs(level - 8.5) - 6.5)
    ring = np.maximum(np.maximum(canal - 5, -canal), np.abs(level - 8) - 5)
    transverse = np.maximum(np.hypot((x - 22) / 1.5, y + 26) - 6, np.abs(level - 8) - 5)
    spinous = np.maximum(np.maximum(x - 3.5, np.abs(y + 64) - 14), np.abs(level - 5) - 3.5)
    bony = np.minimum(np.minimum(body, ring), np.minimum(transverse, spinous))
    result[(z < -66) & (bony < 0)] = Tissue.BONE
    result[(z < -66) & (bony < -1.5)] = Tissue.MARROW


def _paint_base(head: Head, result: _Labels, whole: _Points, half: _Points, cranium: Floats) -> None:
    """Skull base, orbits and all air: sinuses, nose, throat and ears."""
    if not whole.touch((-95, -65, -300), (95, 120, 15)):
        return
    free = cranium > 1.5  # the brain keeps a wall of bone

    def put(distance: Floats, tissue: Tissue, wall: float = 0.0) -> None:
        if distance.ndim:
            if wall:
                result[free & (distance < wall)] = Tissue.BONE
            result[free & (distance < 0)] = tissue

    def cells(distance: Floats) -> None:
        inside = np.flatnonzero(free & (distance < 0))
        if inside.size:
            open_ = np.abs(head.cells(whole.xyz[:, inside])) > 0.35
            result[inside] = np.where(open_, Tissue.CAVITY, Tissue.BONE)

    frontal, maxillary, sphenoid = head.sinuses
    put(whole.ellipsoid((0, 6, -36), (17, 20, 13)), Tissue.MARROW, 1.5)  # body of the sphenoid
    put(whole.rod((0, -6, -36), (0, -26, -60), 7, 5), Tissue.MARROW, 1.5)  # clivus
    put(half.rod((16, -32, -66), (14, -22, -74), 6), Tissue.MARROW, 1.5)  # condyle
    put(half.rod((64, -32, -46), (18, -10, -38), 11, 5), Tissue.BONE)  # petrous bone
    put(half.rod((62, -34, -48), (58, -32, -68), 11, 6), Tissue.BONE)  # mastoid
    cells(half.rod((62, -34, -46), (58, -32, -66), 9, 4.5))
    put(half.ellipsoid((41, -21, -41), (4, 5, 6)), Tissue.CAVITY)  # middle ear
    put(half.ellipsoid((31, -20, -40), (4, 3, 3)), Tissue.CSF)  # inner ear
    put(half.rod((45, -21, -43), (62, -22, -43), 3), Tissue.CAVITY, 2.0)  # ear canal
    put(half.rod((62, -22, -43), (86, -24, -43), 2.5, 3), Tissue.CAVITY)

    cells(whole.ellipsoid((0, 42, -31), (13, 26, 11)))  # ethmoid
    if frontal > 0.35:
        air = half.ellipsoid((11 * frontal, 78, -6), (12 * frontal, 6, 11 * frontal))
        # It stays between the tables of the frontal bone.
        put(np.maximum(air, cranium - (head.skull_mm - 1.5)) if air.ndim else air, Tissue.CAVITY, 1.5)
    put(half.ellipsoid((31, 46, -60), (13 * maxillary, 17 * maxillary, 15 * maxillary)), Tissue.CAVITY, 1.6)
    put(whole.ellipsoid((2, 14, -38), (13 * sphenoid, 11 * sphenoid, 9 * sphenoid)), Tissue.CAVITY)

    orbit = np.minimum(half.ellipsoid((32, 54, -36), (18, 22, 17)), half.rod((30, 50, -36), (16, 16, -36), 13, 4))
    result[free & (orbit < 1.6) & (whole.xyz[1] < 64)] = Tissue.BONE
    put(orbit, Tissue.FAT)
    for x, z in ((32, -25), (32, -47), (21, -36), (43, -36), (31, -36)):  # four muscles and the optic nerve
        put(half.rod((x, 52, z), (16, 18, -36 + 0.1 * (z + 36)), 1.9), Tissue.MUSCLE)
    globe = half.ellipsoid((32, 60, -36), (12, 12, 12))
    put(globe, Tissue.MUSCLE)
    put(globe + np.float32(1.2), Tissue.EYE)

    nose = np.minimum(whole.ellipsoid((0, 44, -52), (14, 40, 19)), half.rod((5, 78, -56), (6, 97, -75), 4, 4.5))
    put(nose, Tissue.CAVITY, 1.0)
    put(half.ellipsoid((10, 38, -61), (4, 27, 5)), Tissue.MUSCLE)  # turbinates
    put(half.ellipsoid((8.5, 36, -48), (3, 22, 5.5)), Tissue.MUSCLE)
    put(np.maximum(nose, half.xyz[0] - 1.6), Tissue.MUSCLE)  # septum
    put(whole.rod((0, 14, -56), (0, 8, -76), 10, 8), Tissue.CAVITY)  # throat
    put(whole.rod((0, 8, -76), (0, 10, -300), 8, 9), Tissue.CAVITY)
    put(whole.ellipsoid((0, 50, -86), (22, 24, 2.2)), Tissue.CAVITY)  # mouth


def _brain(head: Head, whole: _Points, half: _Points, cranium: Floats, cerebrum: Floats) -> _Labels:
    """`Tissue` of points within the cranial cavity: CSF, then the parts of the brain painted into it."""
    x, (y, z) = half.xyz[0], whole.xyz[1:]
    result = np.full(x.size, Tissue.CSF, np.uint8)
    gap = 1.0 + head.atrophy_mm
    relief = head.relief(whole.xyz)
    cerebellum = np.maximum(whole.ellipsoid((0, -63, -35), (52, 35, 28), 40), cranium + 2)

    # Depth below the cortical surface: the outside, the cleft between the hemispheres, the Sylvian fissure.
    cleft = np.where(whole.ellipsoid((0, -6, 8), (200, 42, 22), 400) < 0, 99, x - 0.7)  # corpus callosum bridges it
    sylvian = np.abs(z - (3 - 0.5 * (y + 5)) - 4 * relief) - 0.8
    sylvian = np.maximum(sylvian, np.maximum(34 - x, np.abs(y + 8) - 32))
    depth = np.minimum(np.minimum(-cerebrum - gap, cleft), np.minimum(sylvian, cerebellum - 2))
    # Folds must not vary across the cleft, or a sulcus would lie flat on its wall.
    across = np.sign(whole.xyz[0]) * np.where(x < 14, x * x / 28, x - 7)
    fold = np.abs(head.folds(np.stack([across, y, z])))
    taper = np.clip(1 - depth / 19, 0, 1)
    groove = (0.10 + 0.06 * head.atrophy_mm) * taper
    gray = (depth < 3) | ((fold < groove + 0.62 * np.sqrt(taper)) & (depth < 19))
    result[depth > 0] = np.where(gray, Tissue.GRAY, Tissue.WHITE)[depth > 0]
    result[(depth > 0) & (fold < groove)] = Tissue.CSF

    stem = np.minimum(whole.rod((0, -22, -4), (0, -30, -28), 13), whole.rod((0, -30, -28), (0, -42, -66), 12, 6))
    stem = np.minimum(stem, whole.rod((0, -42, -66), (0, -38, -240), 5.5))
    result[(stem < 0) & (cranium < -1)] = Tissue.WHITE
    if cerebellum.min() < 0:
        # Its folia run across and fan out from the fourth ventricle.
        fan = np.sin(np.arctan2(z + 34, -(y + 42)) * 15 + 2 * relief)
        result[cerebellum < 0] = np.where(fan < -0.97, Tissue.CSF, Tissue.GRAY)[cerebellum < 0]
        result[(cerebellum < -2.5) & (fan > 0.3 + 0.07 * (cerebellum + 2.5))] = Tissue.WHITE

    def put(distance: Floats, tissue: Tissue) -> None:
        if distance.ndim:
            result[(distance < 0) & (cranium < -gap)] = tissue

    put(half.ellipsoid((27, 0, 2), (6, 20, 10)), Tissue.GRAY)  # lentiform nucleus
    put(half.ellipsoid((14, 12, 12), (6, 14, 10)), Tissue.GRAY)  # caudate nucleus
    put(half.ellipsoid((11, -18, 8), (8, 15, 9)), Tissue.GRAY)  # thalamus
    wide = head.ventricles
    put(half.rod((9, 32, 5), (7, -2, 20), 4.5 * wide), Tissue.CSF)
    put(half.rod((7, -2, 20), (24, -42, 14), 4.5 * wide, 6 * wide), Tissue.CSF)
    put(half.rod((24, -42, 14), (24, -66, 7), 5 * wide, 2 * wide), Tissue.CSF)
    put(half.rod((24, -42, 12), (36, -18, -18), 4.5 * wide, 1.8 * wide), Tissue.CSF)
    put(whole.ellipsoid((0, -10, 2), (2.5 * wide, 17, 11)), Tissue.CSF)
    put(whole.ellipsoid((0, -46, -32), (6 * wide, 5 * wide, 9)), Tissue.CSF)
    put(np.maximum(x - 1.2, np.maximum(np.abs(y - 14) - 16, np.abs(z - 14) - 9)), Tissue.WHITE)  # septum
    if head.lesion is not None:
        place, radius = head.lesion
        lump = whole.ellipsoid(place, (radius, radius, radius)) + np.float32(0.15 * radius) * head.cells(
            whole.xyz * 0.4
        )
        result[(lump < 0) & (depth > 0)] = Tissue.LESION
    return result


# --- scans -----------------------------------------------------------------------------------------------------------


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
        CT and MR of the same voxels. Noise depends on the head and the shape only.

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
    texture = _field(_waves(rng, 11, count=6), shape, affine)
    ct = ndimage.gaussian_filter(mixed[0] + mixed[1] * texture, _CT_BLUR_MM / spacing, mode="nearest")
    ct += CT_NOISE_HU * rng.standard_normal(shape, dtype=np.float32)
    white = int(Tissue.WHITE)
    t1 = _receive(rng, mixed[2], float(tables[2, white]), texture, affine)
    t2 = _receive(rng, mixed[3], float(tables[3, white]), texture, affine)
    return Phantom(np.clip(ct, -1024, 3071), t1, t2, labels, body, affine, shape)


def _receive(rng: np.random.Generator, signal: Floats, white: float, texture: Floats, affine: Affine) -> Floats:
    """What a scanner makes of the ideal signal: texture, receive field, noise of both channels, gain; the magnitude."""
    bias = _waves(rng, 220, count=4)
    # With weights that sum to 1 the field cannot leave 1 +- _MR_BIAS.
    bias = _Waves(bias.vectors, bias.phases, bias.weights / np.abs(bias.weights).sum())
    level = signal * (1 + _MR_TEXTURE * texture) * (1 + np.float32(_MR_BIAS) * _field(bias, signal.shape, affine))
    noise = np.float32(white / MR_SNR)
    level += noise * rng.standard_normal(signal.shape, dtype=np.float32)
    other = noise * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.asarray(np.hypot(level, other) * np.float32(1000 * np.exp(rng.uniform(-0.7, 0.7))), dtype=np.float32)


def _field(waves: _Waves, shape: tuple[int, ...], affine: Affine) -> Floats:
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


# --- cohorts ---------------------------------------------------------------------------------------------------------


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


# What 'varied' headers go through, one after the other: axis codes, tilt in degrees, slice thickness relative to the
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
    headers: Literal["varied", "plain"] = "varied",
) -> Cohort:
    """Write an unpaired training and a paired test set of head phantoms as NIfTI; the same call, the same bytes.

    The files are `train/mr/mr_001.nii.gz`, `train/ct/ct_001.nii.gz`, `test/mr/case_001.nii.gz`,
    `test/ct/case_001.nii.gz` and `test/mask/case_001.nii.gz`, and so on. MR is float32, CT int16 HU, the mask uint8.
    Every second training CT has a table below the head.

    Args:
        folder: where to write; must not exist yet, or be empty.
        seed: at least 0; every head of the cohort follows from it.
        train_mr, train_ct, test: how many heads of each; no head is in two sets.
        spacing_mm: voxel size to the right, to the front and to the top.
        shape: voxels along the same directions. The top of the grid lies above the vertex, the rest follows.
        contrast: weighting of the MR.
        headers: "plain" is RAS without tilt, CT as plain int16. "varied" varies axis order, tilt, slice thickness
            (with fewer slices, so that the field of view stays) and the CT's slope and intercept from file to file.

    Raises:
        InputError: an argument out of range, or a folder that already holds something.
    """
    target = Path(folder)
    raise_all(
        _problems(target, seed, (train_mr, train_ct, test), spacing_mm, shape, contrast, headers),
        "cannot write the phantom cohort:",
    )
    written: dict[str, list[Path]] = {"train/mr": [], "train/ct": [], "test/mr": [], "test/ct": [], "test/mask": []}
    with atomic_folder(target) as temporary:
        for stage, (part, count) in enumerate((("train/mr", train_mr), ("train/ct", train_ct), ("test", test))):
            for number in range(count):
                subject = head(int(np.random.SeedSequence([seed, stage, number]).generate_state(1)[0]))
                # The sets start at different places, so that no header belongs to one modality.
                variant = number + 2 * stage if headers == "varied" else 0
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
    headers: str,
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
    if contrast not in _SEQUENCES_MS:
        yield f"contrast is {contrast!r}; choose one of {', '.join(_SEQUENCES_MS)}."
    if headers not in ("varied", "plain"):
        yield f"headers is {headers!r}; choose 'varied' or 'plain'."


def _grid(
    head: Head, shape: tuple[int, int, int], spacing: tuple[float, float, float], variant: int
) -> tuple[tuple[int, int, int], Affine]:
    """Shape and affine of a scan with the vertex of the head near the top; variant 0 is RAS without tilt."""
    thicker = _THICKER[variant % len(_THICKER)]
    size = (shape[0], shape[1], max(1, round(shape[2] / thicker)))
    steps = np.array(spacing) * (1, 1, thicker)
    tilt = np.radians(_TILT[variant % len(_TILT)])
    affine = np.eye(4)
    affine[:3, :3] = _rotation(np.array([tilt, tilt / 2, -tilt / 2])) @ np.diag(steps)
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
