"""From the volumes of a patient to a prepared case, and from network output back to the source grid.

A case has one or more *channels*: scans of one patient, such as T1w and T2w, in a fixed order. The first decides: its
grid is the source grid, its body the body, its working grid that of all. Each is resampled once from its own grid onto
the working grid, by the world coordinates of its header, and has a scaler of its own, fitted in the one body.

The order of preparation, all of it on a channel's own grid until the one interpolation: find the body, take blanked
voxels out of it, correct the bias field, fit the scaler, clip and scale, resample onto the working grid, set what lies
outside the body to -1, crop. Clipping has to come before resampling, because one metal voxel of 30000 HU would
otherwise spread. Training and conversion go through the same `Preparation`, which a checkpoint holds.
"""

from __future__ import annotations

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
from medcyclegan.io.reader import grid_of
from medcyclegan.transforms.bias import CorrectBiasd
from medcyclegan.transforms.blanked import ExcludeBlankedd
from medcyclegan.transforms.body import BodyMaskd, OutsideBodyd
from medcyclegan.transforms.geometry import CropToBodyd, Mode, ToWorkingGridd, resample
from medcyclegan.transforms.intensity import CT_WINDOW, MR_PERCENTILES, ScaleCTd, ScaleMRd, Scaler, fitted_scaler
from medcyclegan.transforms.limits import MODALITIES, file_name, require_modality, require_size
from medcyclegan.transforms.overlay import APART_MM, WHOLE, apart_mm, covered, moved, require_covered
from medcyclegan.transforms.standardization import STANDARDIZATIONS, decile_shares, standard_scaler

Interpolation = Literal["linear", "bspline"]

_SOURCE_BODY = "source_body"  # key of the body before it was resampled


@dataclass(frozen=True)
class Preparation:
    """How a channel is prepared.

    Attributes:
        modality: "MR" (scaled by percentiles inside the body) or "CT" (scaled by `ct_window`).
        spacing: of the working grid along the RAS axes, mm; () where a cohort is to decide it.
        ct_window: HU of -1 and of 1.
        mr_percentiles: percentiles inside the body that become -1 and 1.
        mr_inverted: they become 1 and -1 instead, so that cortical bone, dark in MR, is bright as in CT. A generator's
            first guess, to keep bright bright, and the identity loss then pull the same way as the translation.
        mr_floor: lowest value inside the body of an MR; above -1 it leaves a gap to the background. Without one,
            inverted fat would be as dark as air.
        interpolation: onto the working grid, "linear" or "bspline".
        crop_margin: mm around the body that the working grid keeps; None keeps the whole field of view.
        mr_n4_shrink: shrink factor of the N4 correction of MR (`bias.correct_bias`); 0: no correction.
        mr_standardization: what -1 and 1 mean in MR, see `standardization`.
        mr_landmarks: for the standardization "nyul", nine rising shares in (0, 1); () where a cohort is to decide them.
        mr_exclude_blanked: voxels of an MR that defacing overwrote (`blanked.blanked_voxels`) are no body.
        name: of the channel, "T1w" for example; by default its modality.
    """

    modality: str
    spacing: tuple[float, ...] = ()
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
    name: str = ""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("modality", self.modality, MODALITIES),
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("mr_standardization", self.mr_standardization, STANDARDIZATIONS),
        ):
            if value not in allowed:
                raise InputError(f"{name} '{value}': one of {', '.join(allowed)} is needed.")
        if self.mr_n4_shrink < 0 or (self.crop_margin is not None and self.crop_margin < 0):
            raise InputError(
                f"mr_n4_shrink and crop_margin are at least 0, got {self.mr_n4_shrink} and {self.crop_margin}."
            )
        object.__setattr__(self, "name", self.name or self.modality)
        object.__setattr__(self, "mr_landmarks", tuple(float(v) for v in self.mr_landmarks))
        object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
        object.__setattr__(self, "ct_window", tuple(float(v) for v in self.ct_window))
        object.__setattr__(self, "mr_percentiles", tuple(float(v) for v in self.mr_percentiles))


@dataclass(frozen=True)
class Channel:
    """One scan of a case.

    Attributes:
        preparation: how it was prepared; its name is that of the channel.
        scaler: the map between its unit and [-1, 1].
        covered: share of the body that it shows.
        apart_mm: mean displacement of the body in a rigid registration to the first channel; 0 for the first channel,
            nan where it cannot be estimated.
    """

    preparation: Preparation
    scaler: Scaler
    covered: float = 1.0
    apart_mm: float = 0.0

    @property
    def name(self) -> str:
        return self.preparation.name


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A patient as networks see it, with everything that is needed to go back.

    Attributes:
        image: (C, X, Y, Z) float32 in [-1, 1] on `grid`; -1 outside the body, and where a channel has no voxels.
        body: (X, Y, Z) bool on `grid`.
        grid: the working grid.
        source_grid: the grid of the first channel's volume.
        channels: C of them.
        blanked_ml: volume that was overwritten at the body, a defaced face for example, mL; MR only.
    """

    image: np.ndarray
    body: np.ndarray
    grid: Grid
    source_grid: Grid
    channels: tuple[Channel, ...]
    blanked_ml: float = 0.0


def preparation_transform(preparation: Preparation, has_body: bool, onto: Grid | None = None) -> Compose:
    """The preparation as MONAI dictionary transforms on the keys "image" and "body".

    Args:
        preparation: how.
        has_body: True if "body" is given, a MetaTensor (1, X, Y, Z) on the grid of "image"; else it is found.
        onto: for a channel after the first, the grid that the first has come to. It is resampled onto that, not
            cropped, and what lies outside the body there is left to the caller, whose body is the first channel's.

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


def prepare(
    volumes: Sequence[MetaTensor], preparations: Sequence[Preparation], body: np.ndarray | None = None
) -> PreparedCase:
    """Prepare the channels of one patient.

    Args:
        volumes: (1, X, Y, Z) each, HU for CT, in the order of the channels; as `io.reader.read_volume` gives them. They
            need not share a grid, and are left as they are.
        preparations: one per channel.
        body: (X, Y, Z) bool on the grid of the first; found in it by `body.body_mask` where it is None. Voxels that
            were blanked in an MR are taken out of either, unless its preparation keeps them.

    Raises:
        InputError: a header names another modality, a CT has values that no CT has, no body is found, the intensities
            are flat, the given body is empty, the working grid would be shorter than 4 voxels along an axis or have
            more than 2^31, or a channel covers less than 90 % of the body.
    """
    if len(volumes) != len(preparations) or not volumes or not all(p.spacing for p in preparations):
        raise ValueError(
            f"{len(volumes)} volumes and {len(preparations)} preparations, each with a spacing, are no case"
        )
    first, source = volumes[0], grid_of(volumes[0])
    require_size(source, preparations[0].spacing, file_name(first), picture="picture" in first.meta)
    for volume, preparation in zip(volumes, preparations, strict=True):
        require_modality(volume, preparation.modality)
    data = _run_steps(first, preparations[0], body)
    grid, inside, kept = grid_of(data["image"]), _mask(data[_SOURCE_BODY]), _mask(data["body"])
    blanked_ml = float(data.get("blanked_ml", 0.0))
    images, channels = [_values(data["image"])], [Channel(preparations[0], fitted_scaler(data["image"]))]
    for volume, preparation in zip(volumes[1:], preparations[1:], strict=True):
        own = grid_of(volume)
        share = covered(inside, source, own)
        names = [f"{file_name(v)} ({p.name})" for v, p in ((volume, preparation), (first, preparations[0]))]
        require_covered(share, (own, source), (names[0], names[1]))
        there = moved(inside, source, own)
        data = _run_steps(volume, replace(preparation, crop_margin=None), there, onto=grid)
        blanked = there & ~_mask(data[_SOURCE_BODY])
        if blanked.any():
            kept = kept & ~moved(blanked, own, grid)
            blanked_ml = max(blanked_ml, float(data.get("blanked_ml", 0.0)))
        images.append(_values(data["image"]))
        apart = apart_mm(first, volume, inside)
        channels.append(Channel(preparation, fitted_scaler(data["image"]), share, apart))
    image = np.stack(images)
    image[:, ~kept] = -1.0
    return PreparedCase(image, kept, grid, source, tuple(channels), blanked_ml)


def misplaced(channels: Sequence[Channel]) -> list[str]:
    """Channels of a case that miss part of the body or lie elsewhere than the first, one sentence each."""
    messages = []
    for channel in channels:
        if channel.covered < WHOLE:
            messages.append(
                f"{channel.name} covers {100 * channel.covered:.0f} % of the body; the rest of it is background to the "
                "network"
            )
        if channel.apart_mm > APART_MM:  # False for nan, where it could not be estimated
            messages.append(
                f"{channel.name} and {channels[0].name} seem to lie {channel.apart_mm:.1f} mm apart (a rigid "
                "registration's estimate); did the patient move? Register them, or leave the case out"
            )
    return messages


def landmark_shares(
    volumes: Sequence[MetaTensor], preparations: Sequence[Preparation], body: np.ndarray | None = None
) -> list[npt.NDArray[np.float64]]:
    """One patient's decile shares for the landmarks of "nyul": (9,) per channel, see `standardization.decile_shares`.

    Arguments and errors are those of `prepare`.
    """
    first = _unscaled(volumes[0], preparations[0], body)
    inside, source = _mask(first["body"]), grid_of(volumes[0])
    others = [
        _unscaled(volume, preparation, moved(inside, source, grid_of(volume)))
        for volume, preparation in zip(volumes[1:], preparations[1:], strict=True)
    ]
    return [
        decile_shares(_values(data["image"]), _mask(data["body"]), preparation.mr_percentiles)
        for data, preparation in zip([first, *others], preparations, strict=True)
    ]


def _unscaled(volume: MetaTensor, preparation: Preparation, body: np.ndarray | None) -> dict[Any, Any]:
    return _run_steps(volume, replace(preparation, mr_standardization="percentile"), body, before=ScaleMRd)


def _values(image: MetaTensor) -> npt.NDArray[np.float32]:
    """(1, X, Y, Z) -> (X, Y, Z)."""
    return np.asarray(image.as_tensor().detach().cpu().numpy()[0], dtype=np.float32)


def _mask(body: MetaTensor) -> npt.NDArray[np.bool_]:
    """(1, X, Y, Z) -> (X, Y, Z)."""
    return np.asarray(body.as_tensor().detach().cpu().numpy()[0]).astype(bool)


def _run_steps(
    volume: MetaTensor,
    preparation: Preparation,
    body: np.ndarray | None,
    before: type[MapTransform] | None = None,
    onto: Grid | None = None,
) -> dict[Any, Any]:
    """Run the steps of `preparation_transform`, all of them or those before the first of a class."""
    name, source = file_name(volume), grid_of(volume)
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
            if isinstance(step, ToWorkingGridd):
                data[_SOURCE_BODY] = data["body"]
            data = step(data)
    except InputError as error:
        raise InputError(str(error) if name in str(error) else f"{name}: {error}") from error
    return data


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
