"""From a volume to a prepared case, and from network output back to the source grid.

The order of preparation, all of it on the source grid until the one interpolation: find the body, take blanked voxels
out of it, correct the bias field, fit the scaler, clip and scale, resample onto the working grid, set what lies outside
the body to -1, crop. Clipping has to come before resampling, because one metal voxel of 30000 HU would otherwise
spread. Training and conversion go through the same `Preparation`, which a checkpoint holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.plausible import refuse_impossible_hu
from medcyclegan.io.reader import grid_of
from medcyclegan.transforms.bias import CorrectBiasd
from medcyclegan.transforms.blanked import ExcludeBlankedd
from medcyclegan.transforms.body import BodyMaskd, OutsideBodyd
from medcyclegan.transforms.geometry import CropToBodyd, Mode, ToWorkingGridd, resample, working_grid
from medcyclegan.transforms.intensity import CT_WINDOW, MR_PERCENTILES, ScaleCTd, ScaleMRd, Scaler, fitted_scaler
from medcyclegan.transforms.standardization import STANDARDIZATIONS, decile_shares, standard_scaler

Modality = Literal["MR", "CT"]
Interpolation = Literal["linear", "bspline"]

SOURCE_BODY = "source_body"
# Networks that halve their input twice need this much.
FEWEST_VOXELS = 4
# More are no patient but a wrong voxel size, of micrometers taken as millimeters for example.
_MOST_VOXELS = 2**31


@dataclass(frozen=True)
class Preparation:
    """What decides how a volume is prepared.

    Attributes:
        modality: "MR" (scaled by percentiles inside the body) or "CT" (scaled by `ct_window`).
        spacing: of the working grid along the RAS axes, mm.
        ct_window: HU of -1 and of 1.
        mr_percentiles: percentiles inside the body that become -1 and 1.
        mr_inverted: they become 1 and -1 instead, so that cortical bone, dark in MR, is bright as in CT. A generator's
            first guess, to keep bright bright, and the identity loss then pull the same way as the translation.
        mr_floor: lowest value inside the body of an MR; above -1 it leaves a gap to the background. Without one,
            inverted fat would be as dark as air.
        interpolation: onto the working grid, "linear" or "bspline".
        crop_margin: mm around the body that the working grid keeps; None keeps the whole field of view.
        mr_n4_shrink: MR is corrected by N4 on every so manieth voxel (`bias.correct_bias`); 0 leaves it as it is.
        mr_standardization: what -1 and 1 mean in MR, see `standardization`.
        mr_landmarks: of the training volumes, for the standardization "nyul"; nine rising shares in (0, 1).
        mr_exclude_blanked: voxels of an MR that defacing overwrote (`blanked.blanked_voxels`) are no body.
    """

    modality: str
    spacing: tuple[float, float, float]
    ct_window: tuple[float, float] = CT_WINDOW
    mr_percentiles: tuple[float, float] = MR_PERCENTILES
    mr_inverted: bool = False
    mr_floor: float = -1.0
    interpolation: str = "linear"
    crop_margin: float | None = None
    mr_n4_shrink: int = 0
    mr_standardization: str = "percentile"
    mr_landmarks: tuple[float, ...] = ()
    mr_exclude_blanked: bool = True

    def __post_init__(self) -> None:
        if self.modality not in get_args(Modality):
            raise InputError(f"modality '{self.modality}': one of {', '.join(get_args(Modality))} is needed.")
        for name, value, allowed in (
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("mr_standardization", self.mr_standardization, STANDARDIZATIONS),
        ):
            if value not in allowed:
                raise InputError(f"{name} '{value}': one of {', '.join(allowed)} is needed.")
        if self.mr_n4_shrink < 0 or (self.crop_margin is not None and self.crop_margin < 0):
            raise InputError(
                f"mr_n4_shrink and crop_margin are at least 0, got {self.mr_n4_shrink} and {self.crop_margin}."
            )
        object.__setattr__(self, "mr_landmarks", tuple(float(v) for v in self.mr_landmarks))
        object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
        object.__setattr__(self, "ct_window", tuple(float(v) for v in self.ct_window))
        object.__setattr__(self, "mr_percentiles", tuple(float(v) for v in self.mr_percentiles))


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One volume, or several contrasts of a patient, as networks see it, with everything that is needed to go back.

    Attributes:
        image: (X, Y, Z) float32 in [-1, 1] on `grid`; -1 outside the body. Of several contrasts (C, X, Y, Z).
        body: (X, Y, Z) bool on `grid`.
        grid: the working grid.
        source_grid: the grid of the volume, of several contrasts that of the first.
        scaler: the map between the volume's unit and [-1, 1], of several contrasts that of the first.
        blanked_ml: volume that was overwritten at the body, a defaced face for example, mL; MR only.
        further: the other contrasts, in order.
    """

    image: np.ndarray
    body: np.ndarray
    grid: Grid
    source_grid: Grid
    scaler: Scaler
    blanked_ml: float = 0.0
    further: tuple[FurtherContrast, ...] = ()


@dataclass(frozen=True)
class FurtherContrast:
    """What is known of a contrast after the first; see `contrasts`.

    Attributes:
        scaler: the map between its unit and [-1, 1].
        covered: share of the body that it shows.
        apart_mm: how far a rigid registration would move the body to lay the first contrast on it, mean over the
            body; nan where that cannot be told.
    """

    scaler: Scaler
    covered: float
    apart_mm: float


def preparation_transform(preparation: Preparation, has_body: bool, onto: Grid | None = None) -> Compose:
    """The preparation as MONAI dictionary transforms on the keys "image" and "body".

    Args:
        preparation: what decides.
        has_body: True if "body" is given, a MetaTensor (1, X, Y, Z) on the grid of "image"; else it is found.
        onto: for a contrast after the first, the grid that the first has come to. It is resampled onto that, not
            cropped, and what lies outside the body there is left to the caller, whose body is the first contrast's.

    Returns:
        A Compose from {"image": (1, X, Y, Z) MetaTensor in HU or MR units} to "image" in [-1, 1] and "body" on the
        working grid, and for MR the excluded "blanked_ml". Its inverse brings both back to the source grid and the
        image to its unit.
    """
    steps: list[MapTransform] = []
    if not has_body:
        steps.append(BodyMaskd("image", "body", modality=preparation.modality))
    if preparation.modality == "CT":
        steps.append(ScaleCTd("image", preparation.ct_window))
    else:
        if preparation.mr_exclude_blanked:
            steps.append(ExcludeBlankedd("image", "body"))
        if preparation.mr_n4_shrink:
            steps.append(CorrectBiasd("image", "body", preparation.mr_n4_shrink))
        fit = partial(
            standard_scaler,
            standardization=preparation.mr_standardization,
            percentiles=preparation.mr_percentiles,
            landmarks=preparation.mr_landmarks,
        )
        steps.append(ScaleMRd("image", "body", inverted=preparation.mr_inverted, floor=preparation.mr_floor, fit=fit))
        # Before resampling too: the air around an inverted MR is as bright as bone and would leave a rim.
        steps.append(OutsideBodyd("image", "body", -1.0))
    modes: tuple[Mode, Mode] = ("bspline" if preparation.interpolation == "bspline" else "linear", "nearest")
    steps.append(ToWorkingGridd(["image", "body"], preparation.spacing, (-1.0, 0.0), modes, onto=onto))
    if onto is not None:
        return Compose(steps)
    steps.append(OutsideBodyd("image", "body", -1.0))
    if preparation.crop_margin is not None:
        steps.append(CropToBodyd(["image", "body"], (-1.0, 0.0), margin=preparation.crop_margin))
    return Compose(steps)


def prepare(volume: MetaTensor, preparation: Preparation, body: np.ndarray | None = None) -> PreparedCase:
    """Prepare one volume.

    Args:
        volume: (1, X, Y, Z), HU for CT; as `io.reader.read_volume` gives it. Left as it is.
        preparation: what decides.
        body: (X, Y, Z) bool on the grid of `volume`; found by `body.body_mask` where it is None. Blanked voxels of
            an MR are taken out of either, unless `preparation` keeps them.

    Raises:
        InputError: its header names another modality, a CT has values that no CT has, no body is found, the
            intensities are flat, the given body is empty, or the working grid would be shorter than 4 voxels along an
            axis or have more than 2^31.
    """
    _refuse_unusable(volume, preparation)
    return _prepared_case(volume, run_steps(volume, preparation, body))


def prepared_with_body(
    volume: MetaTensor, preparation: Preparation, body: np.ndarray | None = None
) -> tuple[PreparedCase, npt.NDArray[np.bool_]]:
    """As `prepare`, and the body (X, Y, Z) on the volume's own grid, without what was blanked."""
    _refuse_unusable(volume, preparation)
    data = run_steps(volume, preparation, body, keep_body=True)
    return _prepared_case(volume, data), data[SOURCE_BODY].as_tensor()[0].numpy().astype(bool)


def _refuse_unusable(volume: MetaTensor, preparation: Preparation) -> None:
    require_size(grid_of(volume), preparation.spacing, _name(volume), picture="picture" in volume.meta)
    refuse_other_modality(volume, preparation)
    if preparation.modality == "CT":
        refuse_impossible_hu(float(volume.min()), float(volume.max()), _name(volume))


def _prepared_case(volume: MetaTensor, data: dict[Any, Any]) -> PreparedCase:
    image, mask_moved = data["image"], data["body"]
    return PreparedCase(
        image=np.ascontiguousarray(image.as_tensor()[0].numpy(), dtype=np.float32),
        body=mask_moved.as_tensor()[0].numpy().astype(bool),
        grid=grid_of(image),
        source_grid=grid_of(volume),
        scaler=fitted_scaler(image),
        blanked_ml=float(data.get("blanked_ml", 0.0)),
    )


def refuse_other_modality(volume: MetaTensor, preparation: Preparation) -> None:
    """Refuse a volume whose header says that it is of another modality, or a picture as CT.

    Raises:
        InputError: saying so.
    """
    name = _name(volume)
    said = str(volume.meta.get("modality", preparation.modality))
    if said != preparation.modality and said in get_args(Modality):
        raise InputError(
            f"{name}: its header says that it is {said}, and {preparation.modality} is needed here.",
            "Were two folders exchanged?",
        )
    if preparation.modality == "CT" and volume.meta.get("unit") == "gray levels":
        raise InputError(
            f"{name}: a picture of {volume.meta['picture']} gray levels says nothing of Hounsfield units.",
            "Say which HU were black and white (data.picture_window), give both domains the modality MR, or give the "
            "volumes that the pictures were made of.",
        )


def landmark_shares(
    volume: MetaTensor, preparation: Preparation, body: np.ndarray | None = None
) -> npt.NDArray[np.float64]:
    """What one training volume contributes to the landmarks of "nyul": (9,), see `standardization.decile_shares`.

    Arguments and errors are those of `prepare`.
    """
    data = run_steps(volume, replace(preparation, mr_standardization="percentile"), body, before=ScaleMRd)
    values, inside = (data[key].as_tensor().detach().cpu().numpy()[0] for key in ("image", "body"))
    return decile_shares(values, inside, preparation.mr_percentiles)


def run_steps(
    volume: MetaTensor,
    preparation: Preparation,
    body: np.ndarray | None,
    before: type[MapTransform] | None = None,
    onto: Grid | None = None,
    keep_body: bool = False,
) -> dict[Any, Any]:
    """What the steps of `preparation_transform` give, all of them or those before the first of a class.

    With `keep_body` the body before it was resampled is at the key `SOURCE_BODY`.
    """
    name, source = _name(volume), grid_of(volume)
    data: dict[Any, Any] = {"image": volume}
    if body is not None:
        if body.shape != source.shape:
            raise ValueError(f"body of shape {body.shape} does not fit the volume of shape {source.shape}")
        if not body.any():
            raise InputError(f"{name}: the body mask is empty.")
        mask = np.array(body, dtype=np.uint8)[None]
        data["body"] = MetaTensor(torch.from_numpy(mask), affine=torch.from_numpy(source.affine.copy()))
    try:
        # One by one, because a Compose turns every exception into a RuntimeError.
        for step in preparation_transform(preparation, body is not None, onto).transforms:
            if before is not None and isinstance(step, before):
                break
            if keep_body and isinstance(step, ToWorkingGridd):
                data[SOURCE_BODY] = data["body"]
            data = step(data)
    except InputError as error:
        raise InputError(str(error) if name in str(error) else f"{name}: {error}") from error
    return data


def _name(volume: MetaTensor) -> str:
    return str(volume.meta.get("filename_or_obj") or "the volume")


def restore(
    values: np.ndarray, grid: Grid, source_grid: Grid, scaler: Scaler, body: np.ndarray | None = None
) -> np.ndarray:
    """Network output back on the source grid, in the unit of the scaler, with one linear interpolation.

    Args:
        values: (X, Y, Z) in [-1, 1] on `grid`.
        grid: the working grid.
        source_grid: where to go.
        scaler: of the domain that `values` belong to.
        body: (X, Y, Z) bool on `grid`; what lies outside becomes `scaler.low`.

    Returns:
        (X', Y', Z') float32 on `source_grid`; `scaler.low` outside the field of view of `grid`.
    """
    restored = scaler.undo(values)
    if body is not None:
        if body.shape != values.shape:
            raise ValueError(f"body of shape {body.shape} does not fit values of shape {values.shape}")
        restored[~body.astype(bool, copy=False)] = scaler.low
    return resample(restored, grid, source_grid, fill=scaler.low, antialias=False)


def require_size(source: Grid, spacing: Sequence[float], name: str, picture: bool = False) -> None:
    """Refuse a volume that has too few or too many voxels on the working grid.

    Args:
        source: grid of the volume.
        spacing: of the working grid along right, anterior, superior, mm.
        name: of the volume, for the message.
        picture: whether it is one, which has a single slice.

    Raises:
        InputError: saying how many voxels it would have.
    """
    shape = working_grid(source, spacing).shape
    if math.prod(shape) > _MOST_VOXELS:
        raise InputError(
            f"{name}: {' x '.join(map(str, source.shape))} voxels of {' x '.join(f'{s:.3g}' for s in source.spacing)} "
            f"mm become {' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:g}' for s in spacing)} mm.",
            "Correct the voxel size in its header.",
        )
    if picture and shape[2] != 1:
        raise InputError(
            f"{name}: a picture is one slice of 1 mm, and {spacing[2]:g} mm slices would make {shape[2]} of it.",
            "Leave preparation.spacing out, or give a third number of 1 mm or more.",
        )
    if min(shape[: 2 if picture else 3]) < FEWEST_VOXELS:
        raise InputError(
            f"{name}: {' x '.join(map(str, source.shape))} voxels of {' x '.join(f'{s:.3g}' for s in source.spacing)} "
            f"mm become {' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:g}' for s in spacing)} mm; at least "
            f"{FEWEST_VOXELS} along each axis are needed.",
            "Choose a finer spacing or leave this volume out.",
        )
