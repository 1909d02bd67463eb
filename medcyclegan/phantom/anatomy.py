"""Heads: which tissue is at any point of one, and how one is drawn.

The anatomy is described in head space (RAS+ mm, origin in the middle of the brain), from the skin inward: soft tissue
first, then bones, air and brain painted over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from medcyclegan.phantom.fields import Floats, Points, Waves, draw_waves, union

Affine = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.uint8]


class Tissue(IntEnum):
    """The tissue at a point; also the values of `Phantom.labels`."""

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
    bend: Waves
    folds: Waves
    relief: Waves
    cells: Waves
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
    pose[:3, :3] = rotation(angles) @ np.diag(size.clip(0.9, 1.08))
    pose[:3, 3] = rng.uniform(-5, 5, 3)
    lesion = None
    if rng.random() < 0.25:
        place = (rng.choice([-1, 1]) * rng.uniform(22, 42), rng.uniform(-55, 35), rng.uniform(15, 45))
        lesion = ((float(place[0]), float(place[1]), float(place[2])), float(rng.uniform(5, 13)))
    return Head(
        seed=seed,
        pose=pose,
        bend=draw_waves(rng, 150, 1.3, outputs=3, count=4),
        folds=draw_waves(rng, 23),
        relief=draw_waves(rng, 60, count=6),
        cells=draw_waves(rng, 9, count=6),
        skull_mm=float(rng.uniform(5.5, 8.0)),
        fat_mm=float(rng.uniform(2.0, 5.0)),
        atrophy_mm=float(rng.uniform(0.0, 1.6)),
        ventricles=float(rng.uniform(0.75, 1.45)),
        # Frontal, maxillary and sphenoid sinus; some people have no frontal sinus.
        sinuses=(float(rng.uniform(0.0, 1.2)), float(rng.uniform(0.75, 1.1)), float(rng.uniform(0.7, 1.15))),
        lopsided=rng.normal(0, 1.2, (3, 1)).astype(np.float32),
        lesion=lesion,
    )


def rotation(angles: npt.NDArray[np.float64]) -> Affine:
    """Rotation (3, 3) by `angles` in radians around x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    around_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(around_z @ around_y @ around_x, dtype=np.float64)


def _tissue(head: Head, xyz: Floats) -> _Labels:
    """`Tissue` (N,) at points (3, N) of head space."""
    result = np.full(xyz.shape[1], Tissue.OUTSIDE, np.uint8)
    whole = Points(xyz)
    if not whole.touch((-105, -135, -300), (105, 130, 115)):
        return result
    # Paired parts are described once, on the right; left and right differ by a few mm all the same.
    side = np.clip(xyz[:1] / 30, -1, 1) * head.lopsided
    half = Points((np.stack([np.abs(xyz[0]), xyz[1], xyz[2]]) + side).astype(np.float32, copy=False))
    cranium, cerebrum = _cranium(whole, half)
    skin = _skin(head, whole, half, cranium)
    inside = np.flatnonzero(skin < 0)
    if inside.size:
        result[inside] = _within(head, whole[inside], half[inside], cranium[inside], cerebrum[inside], -skin[inside])
    return result


def _cranium(whole: Points, half: Points) -> tuple[Floats, Floats]:
    """Distance to the inner table of the skull: of the whole cranial cavity, and of the part for the cerebrum."""
    x, y, z = whole.xyz
    egg = Points(np.stack([x * (1 + 0.0016 * (y + 18)), y, z]))  # wider at the back
    vault = -union(
        -egg.ellipsoid((0, -18, 5), (71, 91, 77), 400), z + 21 + 6 * np.exp(-((x / 18) ** 2)) - 0.05 * np.abs(y - 20), 8
    )
    cerebrum = union(vault, half.ellipsoid((41, -8, -20), (26, 37, 22), 40), 6)
    behind = union(
        whole.ellipsoid((0, -62, -34), (54, 37, 30), 400), whole.rod((0, -26, -14), (0, -42, -62), 15, 11, 60), 8
    )
    behind = union(behind, whole.rod((0, -42, -60), (0, -38, -240), 10, reach=60), 4)
    petrous = half.rod((64, -32, -46), (18, -10, -38), 14, 6, 40)
    return np.maximum(union(cerebrum, behind, 4), -petrous), np.maximum(cerebrum, -petrous)


def _skin(head: Head, whole: Points, half: Points, cranium: Floats) -> Floats:
    """Distance to the surface of the skin."""
    temple = 8 * np.exp(-(((half.xyz[1] - 22) / 28) ** 2) - ((half.xyz[2] + 12) / 30) ** 2) * (half.xyz[0] > 25)
    skin = cranium - (head.skull_mm + head.fat_mm + 3 + temple)
    skin = union(skin, whole.ellipsoid((0, 28, -60), (65, 60, 62), 50), 14)
    skin = union(skin, whole.ellipsoid((0, 46, -92), (48, 42, 34), 50), 14)
    skin = union(skin, whole.ellipsoid((0, 74, -108), (24, 16, 16), 50), 14)  # chin
    skin = union(skin, whole.rod((0, -26, -50), (0, -36, -240), 58, 60, 60), 22)
    skin = union(skin, whole.rod((0, 87, -28), (0, 102, -57), 4, 8, 20), 9)
    skin = union(skin, half.ellipsoid((9, 92, -61), (8, 11, 7), 20), 5)
    skin = union(skin, whole.ellipsoid((0, 89, -81), (22, 7, 9), 20), 5)  # lips
    ear = half.ellipsoid((84, -28, -36), (8, 19, 32), 20)
    return union(skin, np.maximum(ear, -half.ellipsoid((93, -20, -37), (9, 11, 20), 20)), 5)


def _within(head: Head, whole: Points, half: Points, cranium: Floats, cerebrum: Floats, depth: Floats) -> _Labels:
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


def _paint_face(result: _Labels, whole: Points, half: Points) -> None:
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


def _paint_spine(result: _Labels, whole: Points, half: Points, canal: Floats) -> None:
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


def _paint_base(head: Head, result: _Labels, whole: Points, half: Points, cranium: Floats) -> None:
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


def _brain(head: Head, whole: Points, half: Points, cranium: Floats, cerebrum: Floats) -> _Labels:
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
        uneven = 0.15 * radius * head.cells(whole.xyz * np.float32(0.4))
        result[(whole.ellipsoid(place, (radius, radius, radius)) + uneven < 0) & (depth > 0)] = Tissue.LESION
    return result
