"""Voxels of an MR that somebody overwrote with one value: defaced faces and the like.

They are not air: the face was there. A synthetic CT has air where they are, so they have to be found. Words used
here. *Blanked*: overwritten with one value. *Backdrop*: everything outside the body.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.io.reader import grid_of

# Noise gives neighboring voxels the same value by chance, a blanked face is larger than this (mL).
_SMALLEST_ML = 2.0
# Of the backdrop; where more of it has one value, all of it was masked or never scanned, and nothing can be found.
_ALL_ONE_VALUE = 0.6
# Of the rest of the backdrop that may have the lowest value too; where it is more, air is often 0 by itself.
_BY_CHANCE = 0.02
# A blanked face begins at the body; zeros in the corners of a corrected field of view lie elsewhere (mm).
_NEAR_MM = 6.0
# The correction of gradient distortion leaves a frame of zeros along the border of the volume, up to this thick (mm).
_FRAME_MM = 20.0


def blanked_voxels(volume: np.ndarray, body: np.ndarray, spacing: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Where an MR was overwritten with its lowest value, in the body or next to it.

    It can be found only where the backdrop is noise: there, a connected piece of more than 2 mL that has exactly the
    lowest value, touches the body (to within 6 mm) and reaches deeper than 20 mm below the border of the volume was not
    measured. Where more than 60 % of the backdrop has that
    value itself, or more than 2 % of what remains of it, nothing is found.

    Args:
        volume: (X, Y, Z), any unit.
        body: (X, Y, Z) bool.
        spacing: (3,) mm.

    Returns:
        (X, Y, Z) bool.
    """
    if volume.shape != body.shape or volume.ndim != 3:
        raise ValueError(f"volume of shape {volume.shape} and body of shape {body.shape}")
    inside = body.astype(bool)
    lowest = volume == volume.min()
    backdrop = ~inside
    none = np.zeros(volume.shape, dtype=bool)
    if not inside.any() or (backdrop.any() and lowest[backdrop].mean() > _ALL_ONE_VALUE):
        return none
    # Opened by one voxel: single voxels of noise that are 0 by chance must not bridge two pieces. The corners of what
    # is left come back.
    opened = ndimage.binary_opening(lowest, ndimage.generate_binary_structure(3, 1))
    pieces, count = ndimage.label(ndimage.binary_dilation(opened, iterations=2, mask=lowest))
    if count == 0:
        return none
    deep = pieces[tuple(slice(n, -n or None) for n in (int(_FRAME_MM / step) for step in spacing))]
    milliliters = np.bincount(deep.ravel(), minlength=count + 1) * float(np.prod(spacing)) / 1000
    large = np.flatnonzero(milliliters > _SMALLEST_ML)
    large = large[large > 0]
    if not large.size:
        return none
    reach = max(1, round(_NEAR_MM / min(spacing)))
    near = ndimage.binary_dilation(inside, iterations=reach)
    touching = np.intersect1d(large, np.unique(pieces[near]))
    rest = backdrop & (pieces == 0)
    if rest.any() and lowest[rest].mean() > _BY_CHANCE:
        return none
    return np.asarray(np.isin(pieces, touching))


class ExcludeBlankedd(MapTransform):
    """Take blanked voxels of the MR at `keys` (one key) out of the body; their volume in mL goes to `volume_key`.

    Args:
        keys: one key of a MetaTensor (1, X, Y, Z).
        body_key: key of the body mask, same shape.
        volume_key: where the volume goes, a float.
    """

    def __init__(
        self, keys: KeysCollection = "image", body_key: Hashable = "body", volume_key: Hashable = "blanked_ml"
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"one key is needed, got {self.keys}")
        self.body_key = body_key
        self.volume_key = volume_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        volume, mask = result[self.keys[0]], result[self.body_key]
        body = torch.as_tensor(mask).detach().cpu().numpy()[0] > 0
        spacing = grid_of(volume).spacing.tolist()
        blanked = blanked_voxels(volume.as_tensor().detach().cpu().numpy()[0], body, spacing)
        result[self.volume_key] = round(float(np.count_nonzero(blanked)) * float(np.prod(spacing)) / 1000, 3)
        if (blanked & body).any():
            body &= ~blanked
            if not body.any():
                raise InputError("the body is blanked: all of it has the lowest value.", "Is the body mask right?")
            result[self.body_key] = mask.clone().copy_(torch.from_numpy(body[None]))
        return result
