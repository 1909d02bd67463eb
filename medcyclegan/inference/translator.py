"""A trained generator as a function from volume to volume."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from torch import nn

from medcyclegan.errors import InputError
from medcyclegan.inference.ensemble import Ensemble, fused, members, mirrored
from medcyclegan.inference.planes import ACROSS, Plane
from medcyclegan.inference.quality import (
    SPREAD_THRESHOLD_HU,
    flags,
    jumping_slices,
    share_above,
)
from medcyclegan.inference.sliding_window import SlidingWindow, translate_volume
from medcyclegan.inference.uncertainty import combined, cycle_residual, spread, structure_disagreement
from medcyclegan.io.grid import Grid
from medcyclegan.io.nifti import kept_fields
from medcyclegan.io.reader import as_volume
from medcyclegan.io.writer import to_int16, write_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.survey.features import Features, features_of
from medcyclegan.survey.volume import measure_volume
from medcyclegan.transforms.geometry import resample
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation, PreparedCase, misplaced, prepare, restore

# bfloat16 is used if it changes the body by less than this on average: 2 HU, or the same share of another unit's range.
# It is measured in two slices.
BF16_LIMIT_HU = 2.0
BF16_LIMIT = BF16_LIMIT_HU * 2 / 4095  # in [-1, 1]
BF16_SLICES = 2


@dataclass(frozen=True)
class Translation:
    """A translated volume on the grid of its source.

    Attributes:
        array: (X, Y, Z); int16 HU for CT, float32 in the training cohort's typical units for MR.
        grid: the source's shape and affine.
        modality: "CT" or "MR".
        description: what made it, for the file's header.
        nifti: geometry of the source's header, if it was NIfTI: where each program puts its voxels.
        uncertainty: name -> map (X, Y, Z) float32 on `grid`, see `inference.uncertainty`; empty unless asked for.
        quality: the quality record, plain data for JSON.
    """

    array: npt.NDArray[Any]
    grid: Grid
    modality: str
    description: str
    nifti: Mapping[str, Any] | None = None
    uncertainty: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4, voxel index to world (RAS+, mm)."""
        return self.grid.affine

    def to_metatensor(self) -> MetaTensor:
        """(1, X, Y, Z) for MONAI pipelines."""
        return MetaTensor(torch.from_numpy(self.array)[None], affine=torch.from_numpy(self.grid.affine.copy()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to .nii, .nii.gz, .mha, .mhd or .nrrd, atomically."""
        write_volume(Path(path), self.array, self.grid, description=self.description, nifti=self.nifti)

    def save_uncertainty(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write one uncertainty map, like `save`."""
        description = f"uncertainty map: {name}, {self.description}"
        write_volume(Path(path), self.uncertainty[name], self.grid, description=description, nifti=self.nifti)


@dataclass(frozen=True)
class ImageDomain:
    """A domain, as a checkpoint describes it.

    Attributes:
        preparations: how the volume of each channel comes onto the working grid, in the model's order.
        scalers: what [-1, 1] means in each channel.
        cohort: features of the training volumes; None where they are unknown.
        name: for example "CT".
    """

    preparations: tuple[Preparation, ...]
    scalers: tuple[Scaler, ...]
    cohort: Sequence[Features] | None = None
    name: str = ""

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels."""
        return tuple(preparation.name for preparation in self.preparations)


@dataclass(frozen=True, eq=False)
class Source:
    """A volume made ready for the network: the first of the three stages of a translation."""

    case: PreparedCase
    nifti: Mapping[str, Any] | None
    features: Features | None = None  # where the training volumes' are known


@dataclass(frozen=True, eq=False)
class Prediction:
    """The output of the network, (X, Y, Z) in [-1, 1] on the working grid, with uncertainty maps: the second stage.

    Per checkpoint, `precisions` is "bf16" or "float32", and `bf16_changes` the change that bfloat16 makes to this
    volume, mean over the body of a few windows in [-1, 1] units; None where bfloat16 is not allowed.
    """

    values: npt.NDArray[np.float32]
    uncertainty: dict[str, npt.NDArray[np.float32]]
    members: int
    precisions: tuple[str, ...]
    bf16_changes: tuple[float | None, ...]


class Translator:
    """A loaded checkpoint in one direction.

    Made by `medcyclegan.load_translator`. Calling it takes a path, a MetaTensor, a nibabel image or a SimpleITK image
    and gives a `Translation` on the same grid. A model of several channels takes a sequence of them in the order of
    `channels`, or one MetaTensor (C, X, Y, Z), and gives a `Translation` on the grid of the first. The three stages of
    a call, `read`, `predict` and `finish`, can be called one by one, so that reading and writing overlap with
    the network.

    Args:
        generator: the network, a plain `nn.Module` in evaluation mode on `window.device`.
        source: the domain of the volumes that it takes.
        target: the domain of its results; its first preparation has the modality.
        window: how it is run over a volume. With `bf16`, a volume is computed in bfloat16 where that is measured to
            change it by less than 2 HU.
        description: goes into the header of written files.
        backward: the generator of the other direction, for the cycle map.
        others: the other checkpoints of the ensemble, of the same domains.
    """

    def __init__(
        self,
        generator: nn.Module,
        source: ImageDomain,
        target: ImageDomain,
        window: SlidingWindow,
        *,
        description: str = "medcyclegan",
        backward: nn.Module | None = None,
        others: Sequence[Translator] = (),
    ) -> None:
        self.generator = generator
        self.source = source
        self.target = target
        self.window = window
        self.description = description
        self.backward = backward
        self.others = tuple(others)
        own = (source.preparations, self.scaler, self.modality)
        for number, other in enumerate(self.others, start=2):
            if (other.source.preparations, other.scaler, other.modality) != own:
                raise InputError(
                    f"checkpoint {number} of the ensemble prepares its volumes in another way than the first.",
                    "Fuse checkpoints of trainings on the same prepared folder.",
                )

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels that it takes, in order."""
        return self.source.channels

    @property
    def scaler(self) -> Scaler:
        """What [-1, 1] means in the target domain."""
        return self.target.scalers[0]

    @property
    def modality(self) -> str:
        """Of its results."""
        return self.target.preparations[0].modality

    def __call__(
        self,
        image: Any,
        *,
        body: npt.NDArray[np.bool_] | None = None,
        uncertainty: bool = False,
        progress: Progress | None = None,
    ) -> Translation:
        """Translate one volume.

        Args:
            image: a path, MetaTensor, nibabel image or SimpleITK image of the source domain; of several channels a
                sequence of these, which need not share a grid, or a MetaTensor (C, X, Y, Z).
            body: (X, Y, Z) on the (first) image's grid; found from the intensities when not given.
            uncertainty: make the uncertainty maps too.
            progress: watches the slices.

        Raises:
            InputError: if the volume cannot be read or prepared, or the number of channels is not that of the model.
        """
        source = self.read(image, body)
        return self.finish(source, self.predict(source, uncertainty=uncertainty, progress=progress))

    def read(self, image: Any, body: npt.NDArray[np.bool_] | None = None) -> Source:
        """The first stage: read and prepare. Arguments and errors are those of a call."""
        volumes = [as_volume(part) for part in self._parts(image)]
        volume = volumes[0]
        case = prepare(volumes, self.source.preparations, body)
        window, planes = self.window, {self.window.plane, *self.window.ensemble.planes}
        if "picture" in volume.meta and (window.spatial_dims == 3 or window.neighbors or planes != {"axial"}):
            name = volume.meta["filename_or_obj"]
            raise InputError(
                f"{name}: a picture is one axial slice, and this model or ensemble takes more.",
                "Give the volume that it was made of.",
            )
        features = None
        if self.source.cohort:
            features = features_of(measure_volume(volume, body=body), case.image, case.body, case.grid)
        return Source(case, kept_fields(volume.meta), features)

    def _parts(self, image: Any) -> Sequence[Any]:
        """The volumes of the channels, in order."""
        count = len(self.channels)
        if isinstance(image, MetaTensor) and image.ndim == 4 and len(image) > 1 and count > 1:
            image = [MetaTensor(part[None], meta=image.meta) for part in image.as_tensor()]
        parts = image if isinstance(image, list | tuple) else [image]
        if len(parts) != count:
            takes = f"{count} contrasts, {', '.join(self.channels)}" if count > 1 else "one volume"
            raise InputError(
                f"{len(parts)} volume{'s' * (len(parts) != 1)} given, and the model takes {takes}.",
                "Give all of them, in this order." if count > 1 else "Translate them one by one.",
            )
        return parts

    def predict(self, source: Source, *, uncertainty: bool = False, progress: Progress | None = None) -> Prediction:
        """The second stage, and the only one that runs the network."""
        case, watch = source.case, progress or Silent()
        every = [self, *self.others]
        changes = tuple(translator._changed_by_bf16(case) for translator in every)
        bf16 = [translator._is_small(change) for translator, change in zip(every, changes, strict=True)]
        functions = [_function(*each, watch) for each in zip(every, bf16, strict=True)]
        precisions = tuple("bf16" if taken else "float32" for taken in bf16)
        if self.window.ensemble.fuse == "mean" and not uncertainty:
            values, count = _streamed_mean(functions, case, self.window.ensemble)
            return Prediction(values, {}, count, precisions, changes)
        parts = [values for _, values in members(functions, case.image, case.body, self.window.ensemble)]
        result, count = fused(parts, self.window.ensemble.fuse), len(parts)
        maps = {}
        if uncertainty:
            maps = self.uncertainty_maps(case, result, self._at_least_two(parts, functions, case), watch, bf16=bf16[0])
        return Prediction(result, maps, count, precisions, changes)

    def member_results(self, source: Source) -> list[npt.NDArray[np.float32]]:
        """The result of every member, each (X, Y, Z) in [-1, 1]; of a single member also that of the mirrored volume,
        because a spread needs two."""
        case = source.case
        functions = [
            _function(translator, translator._is_small(translator._changed_by_bf16(case)), Silent())
            for translator in [self, *self.others]
        ]
        parts = [values for _, values in members(functions, case.image, case.body, self.window.ensemble)]
        return self._at_least_two(parts, functions, case)

    def _at_least_two(
        self,
        parts: list[npt.NDArray[np.float32]],
        functions: Sequence[tuple[Any, Plane]],
        case: PreparedCase,
    ) -> list[npt.NDArray[np.float32]]:
        if len(parts) > 1:
            return parts
        (plane,) = self.window.ensemble.planes or (self.window.plane,)
        return [*parts, mirrored(functions[0][0], case.image, case.body, plane)]

    def finish(self, source: Source, prediction: Prediction) -> Translation:
        """The third stage: back to the source's grid and unit, with the quality record.

        Raises:
            InputError: the network gave values that are not finite.
        """
        case = source.case
        if lost := int(np.count_nonzero(~np.isfinite(prediction.values[case.body]))):
            raise InputError(
                f"the network gave {lost} of {int(case.body.sum())} voxels values that are not finite.",
                "Take another checkpoint: this one's training has failed, or its numbers do not fit this device.",
            )
        restored = restore(prediction.values, case.grid, case.source_grid, self.scaler, case.body)
        array = to_int16(restored) if self.modality == "CT" else restored
        maps = {
            name: resample(values, case.grid, case.source_grid, fill=0.0, antialias=False)
            for name, values in prediction.uncertainty.items()
        }
        record: dict[str, Any] = {"members": prediction.members, "precision": list(prediction.precisions)}
        if self.modality == "CT":
            hu = (self.scaler.high - self.scaler.low) / 2
            changes = [None if change is None else change * hu for change in prediction.bf16_changes]
            record["bf16_changes_hu"] = [round(c, 3) if c is not None and np.isfinite(c) else None for c in changes]
        if self.source.cohort and source.features is not None:
            modality = self.source.preparations[0].modality
            unlike = flags(source.features, self.source.cohort, modality, self.channels)
            record |= {"cohort": "known", "flags": unlike}
        else:
            record |= {"cohort": "unknown: the checkpoint does not describe its training volumes", "flags": []}
        record["flags"] += misplaced(case.channels)
        if case.blanked_ml:
            record["flags"].append(
                f"{case.blanked_ml:.0f} mL at the body were overwritten with one value (a defaced face?); the result "
                "is empty there, which is not the truth"
            )
        if self.modality == "CT":
            record["flagged_slices"] = jumping_slices(array, case.source_grid)
        if "spread" in prediction.uncertainty and self.modality == "CT":
            record["spread_threshold_hu"] = SPREAD_THRESHOLD_HU
            record["share_above_threshold"] = round(share_above(prediction.uncertainty["spread"], case.body), 5)
        return Translation(array, case.source_grid, self.modality, self.description, source.nifti, maps, record)

    def _changed_by_bf16(self, case: PreparedCase) -> float | None:
        """The change that bfloat16 makes to a few windows of this volume, mean over their body, in [-1, 1] units.

        Measured for every volume and not once for the network: a result must not depend on which volumes came
        before it, or on which process it went to. None where bfloat16 is not allowed.
        """
        if not self.window.bf16:
            return None
        if not case.body.any():
            return float("nan")
        image, body = self._sample(case)
        fast, exact = (
            translate_volume(self.generator, image, body, replace(self.window, bf16=bf16))[0] for bf16 in (True, False)
        )
        return float(np.abs(fast - exact)[body].mean(dtype=np.float64))

    def _is_small(self, bf16_change: float | None) -> bool:
        """False for nan."""
        if bf16_change is None:
            return False
        if self.modality == "CT":
            return bf16_change * (self.scaler.high - self.scaler.low) / 2 < BF16_LIMIT_HU
        return bf16_change < BF16_LIMIT

    def _sample(self, case: PreparedCase) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Image and body of evenly spaced slices with their neighbors; in 3D of one window in the body."""
        shape = case.body.shape
        if self.window.spatial_dims == 3:
            region: list[Any] = []
            part = case.body
            for n, length in zip(shape, self.window.roi_size, strict=True):
                filled = np.flatnonzero(part.any(axis=tuple(range(1, part.ndim))))
                middle = int(filled[len(filled) // 2])
                part = part[middle]  # so that the window lies within the body
                start = max(0, min(middle - length // 2, n - length))
                region.append(slice(start, start + length))
            return case.image[(..., *region)], case.body[tuple(region)]
        across = ACROSS[self.window.plane]
        filled = np.flatnonzero(case.body.any(axis=tuple(axis for axis in range(3) if axis != across)))
        steps = ((np.arange(BF16_SLICES) + 0.5) / BF16_SLICES * len(filled)).astype(int)
        chosen = filled[np.unique(steps)]
        # Where the neighbors of one meet those of the next, stacks are of two places, which rounding does not mind.
        around = [
            n
            for m in chosen
            for n in range(max(0, m - self.window.neighbors), min(shape[across], m + self.window.neighbors + 1))
        ]
        return case.image.take(around, across - 3), case.body.take(around, across - 3)

    def uncertainty_maps(
        self,
        case: PreparedCase,
        result: npt.NDArray[np.float32],
        results: Sequence[npt.NDArray[np.float32]],
        progress: Progress | None = None,
        *,
        bf16: bool = False,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The maps of `inference.uncertainty` by name, (X, Y, Z), of a result that need not be this translator's own.

        `structure` and `cycle` are the means over all channels of the source.

        Args:
            case: the source.
            result: (X, Y, Z) in [-1, 1] on the working grid.
            results: of the members, see `member_results`.
            progress: watches the slices of the translation back.
            bf16: translate back in bfloat16.
        """
        width = self.scaler.high - self.scaler.low
        inside = np.where(case.body, result, np.float32(-1))
        maps = {
            "spread": np.where(case.body, spread(result, results, width), 0).astype(np.float32),
            "structure": structure_disagreement(case.image, inside, case.body),
        }
        if self.backward is not None:
            window, count = replace(self.window, bf16=bf16), len(self.channels)
            returned = translate_volume(
                self.backward, inside[None], case.body, window, out_channels=count, progress=progress
            )
            maps["cycle"] = cycle_residual(case.image, returned, case.body)
        maps["combined"] = combined(maps, case.body)
        return maps


def _function(translator: Translator, bf16: bool, watch: Progress) -> tuple[Any, Plane]:
    """The translator's network as a function of volumes, and its plane."""

    def function(image: npt.NDArray[np.float32], body: npt.NDArray[np.bool_], plane: Plane) -> Any:
        window = replace(translator.window.along(plane), bf16=bf16)
        return translate_volume(translator.generator, image, body, window, progress=watch)[0]

    return function, translator.window.plane


def _streamed_mean(
    functions: Sequence[tuple[Any, Plane]], case: PreparedCase, ensemble: Ensemble
) -> tuple[npt.NDArray[np.float32], int]:
    """The members' mean without holding more than two volumes, and their number."""
    total: npt.NDArray[np.float32] | None = None
    count = 0
    for _, values in members(functions, case.image, case.body, ensemble):
        count += 1
        if total is None:
            total = np.ascontiguousarray(values)
        else:
            total += values
    if total is None:
        raise ValueError("an ensemble has at least one member")
    if count > 1:
        total /= np.float32(count)
    return total, count
