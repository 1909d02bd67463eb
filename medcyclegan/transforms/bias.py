"""N4: removal of the smooth shading that receive coils lay over an MR.

Words used here. *Bias field*: the smooth positive factor that N4 finds; what is left after the division is corrected.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from medcyclegan.errors import InputError
from medcyclegan.io.reader import grid_of

# Fitting levels, each with twice the control points of the one before, and the iterations of each.
_ITERATIONS = (50, 50, 30)
_CONVERGENCE = 1e-3
# The B-splines of the last level need as many voxels along every axis of the copy that is fitted.
_FEWEST_VOXELS = 12


def correct_bias(
    volume: np.ndarray, body: np.ndarray, spacing: Sequence[float], shrink: int
) -> npt.NDArray[np.float32]:
    """Divide an MR by its bias field.

    The field is found by N4 (Tustison et al., "N4ITK: improved N3 bias correction", IEEE TMI 29(6), 2010) on every
    `shrink`-th voxel inside the body and evaluated on all; its geometric mean inside the body is 1, so that the unit
    stays what it was. One thread: the same input gives the same bits.

    Args:
        volume: (X, Y, Z), any unit, MR magnitudes.
        body: (X, Y, Z) bool.
        spacing: (3,) mm.
        shrink: voxels along the finest axis that become one for the fit, at least 1; coarser axes are shrunk less.

    Returns:
        (X, Y, Z) float32 in the unit of `volume`.

    Raises:
        InputError: nothing inside the body is above 0, or N4 finds no finite field.
    """
    if volume.shape != body.shape or volume.ndim != 3:
        raise ValueError(f"volume of shape {volume.shape} and body of shape {body.shape}")
    if shrink < 1:
        raise ValueError(f"shrink is a number of voxels, at least 1, got {shrink}")
    values = np.ascontiguousarray(volume, dtype=np.float32)
    # N4 works on logarithms, which 0 and below do not have.
    usable = body.astype(bool) & (values > 0)
    if not usable.any():
        raise InputError("no value inside the body is above 0, so that no bias field can be found.")
    finest = min(spacing)
    factors = [
        max(1, min(round(shrink * finest / step), count // _FEWEST_VOXELS))
        for step, count in zip(spacing, values.shape, strict=True)
    ]
    image, mask = sitk.GetImageFromArray(values), sitk.GetImageFromArray(usable.astype(np.uint8))
    for given in (image, mask):
        given.SetSpacing([float(step) for step in spacing][::-1])  # ITK counts axes in the reverse order
    # With more threads sums are formed in another order and the field is another; N4's own filters take the global
    # number.
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations(list(_ITERATIONS))
        n4.SetConvergenceThreshold(_CONVERGENCE)
        n4.Execute(sitk.Shrink(image, factors[::-1]), sitk.Shrink(mask, factors[::-1]))
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    except RuntimeError as error:
        raise InputError(f"N4 found no bias field ({str(error).strip().splitlines()[-1]}).") from None
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    if not np.isfinite(field).all():
        raise InputError("N4 found no finite bias field.", "Leave mr_n4_shrink at 0 or give a better body mask.")
    field -= field[usable].mean(dtype=np.float64)
    return np.asarray(values * np.exp(-field), dtype=np.float32)


class CorrectBiasd(MapTransform):
    """Divide MR volumes by their bias field, see `correct_bias`; there is no way back, and none is wanted.

    Args:
        keys: keys of MetaTensors (1, X, Y, Z).
        body_key: key of the body mask, same shape.
        shrink: as in `correct_bias`.
    """

    def __init__(self, keys: KeysCollection, body_key: Hashable = "body", shrink: int = 4) -> None:
        super().__init__(keys)
        self.body_key = body_key
        self.shrink = shrink

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        body = torch.as_tensor(result[self.body_key]).detach().cpu().numpy()[0] > 0
        for key in self.key_iterator(result):
            volume = result[key]
            values = volume.as_tensor().detach().cpu().numpy()[0]
            corrected = correct_bias(values, body, grid_of(volume).spacing.tolist(), self.shrink)
            result[key] = volume.float().clone().copy_(torch.from_numpy(corrected)[None])
        return result
