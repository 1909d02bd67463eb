"""Test-time augmentation and ensembles: several translations of one volume, fused.

Words used here. *Member*: one translation of the volume, by one checkpoint along one plane, mirrored or not.
*Mirrored*: left and right exchanged before the network and back afterwards. Only left and right, the one
near symmetry of a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from medcyclegan.errors import InputError
from medcyclegan.inference.planes import ACROSS, Plane

Fuse = Literal["mean", "median"]
Values = npt.NDArray[np.float32]
# (image (C, X, Y, Z), body (X, Y, Z), plane) -> values (*, X, Y, Z), all on the working grid
Translate = Callable[[Values, npt.NDArray[np.bool_], Plane], Values]


@dataclass(frozen=True)
class Ensemble:
    """Test-time augmentation: which members each checkpoint has, and how all of them are fused.

    Attributes:
        planes: along which the slices are taken; none: the plane of the training.
        flips: every member a second time, mirrored.
        fuse: voxel-wise "mean" or "median".

    Raises:
        InputError: an unknown or repeated plane, or another way to fuse.
    """

    planes: tuple[Plane, ...] = ()
    flips: bool = False
    fuse: Fuse = "mean"

    def __post_init__(self) -> None:
        unknown = [plane for plane in self.planes if plane not in ACROSS]
        if unknown or len(set(self.planes)) < len(self.planes):
            raise InputError(
                f"planes '{','.join(self.planes)}': each of {', '.join(ACROSS)} can be named once.",
                "For example --planes axial,coronal,sagittal.",
            )
        if self.fuse not in get_args(Fuse):
            raise InputError(f"members are fused by mean or median, got '{self.fuse}'.")


def members(
    translators: Sequence[tuple[Translate, Plane]],
    image: Values,
    body: npt.NDArray[np.bool_],
    ensemble: Ensemble,
) -> Iterator[tuple[str, Values]]:
    """Every member, one after another: its name, for example "1 axial mirrored", and its values (*, X, Y, Z).

    Args:
        translators: one per checkpoint: its function and the plane that it was trained on.
        image: (C, X, Y, Z) in [-1, 1].
        body: (X, Y, Z).
    """
    for number, (translate, trained) in enumerate(translators, start=1):
        for plane in ensemble.planes or (trained,):
            yield f"{number} {plane}", translate(image, body, plane)
            if ensemble.flips:
                yield f"{number} {plane} mirrored", mirrored(translate, image, body, plane)


def mirrored(translate: Translate, image: Values, body: npt.NDArray[np.bool_], plane: Plane) -> Values:
    """The translation of the mirrored volume, mirrored back."""
    return translate(image[..., ::-1, :, :], body[::-1], plane)[..., ::-1, :, :]


def fused(values: Sequence[Values], fuse: Fuse) -> Values:
    """Voxel-wise mean or median of members, all of one shape; one member is returned bit for bit."""
    if len(values) == 1:
        return np.ascontiguousarray(values[0])
    if fuse == "median":
        return np.asarray(np.median(np.stack(values), axis=0), dtype=np.float32)
    total = values[0].astype(np.float32)
    for member in values[1:]:
        total += member
    total /= np.float32(len(values))
    return total
