"""A trained generator as a function from volume to volume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from torch import nn

from medcyclegan.errors import InputError
from medcyclegan.inference.ensemble import Ensemble, fused, members, mirrored
from medcyclegan.inference.planes import ACROSS, Plane, plane_window, translate_volume
from medcyclegan.inference.quality import (
    SPREAD_THRESHOLD_HU,
    coverage_flags,
    features,
    flags,
    jumping_slices,
    share_above,
)
from medcyclegan.inference.statistics import Statistics, check_statistics
from medcyclegan.inference.uncertainty import combined, cycle_residual, spread, structure_disagreement
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import as_volume
from medcyclegan.io.writer import to_int16, write_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.transforms.contrasts import APART_MM, prepare_contrasts
from medcyclegan.transforms.geometry import resample
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation, PreparedCase, restore

# bfloat16 is used where it changes the most filled slice by less than this on average, in [-1, 1] units: 2 HU of 4095.
BF16_LIMIT = 2 * 2 / 4095


@dataclass(frozen=True)
class Translation:
    """A translated volume on the grid of its source.

    Attributes:
        array: (X, Y, Z); int16 HU for CT, float32 in the training cohort's typical units for MR.
        grid: the source's shape and affine.
        modality: "CT" or "MR".
        description: what made it, for the file's header.
        nifti_codes: sform and qform code of the source, if it was NIfTI: what its world coordinates mean.
        trust: name -> trust map (X, Y, Z) float32 on `grid`, see `inference.uncertainty`; empty unless asked for.
        quality: the quality record, plain data for JSON.
    """

    array: npt.NDArray[Any]
    grid: Grid
    modality: str
    description: str
    nifti_codes: tuple[int, int] | None = None
    trust: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
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
        write_volume(Path(path), self.array, self.grid, description=self.description, nifti_codes=self.nifti_codes)

    def save_trust(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write one trust map, like `save`."""
        description = f"trust map: {name}, {self.description}"
        write_volume(Path(path), self.trust[name], self.grid, description=description, nifti_codes=self.nifti_codes)


@dataclass(frozen=True, eq=False)
class Source:
    """A volume made ready for the network: the first of the three stages of a translation."""

    case: PreparedCase
    codes: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network gave, (X, Y, Z) in [-1, 1] on the working grid, and its trust maps: the second stage."""

    values: npt.NDArray[np.float32]
    trust: dict[str, npt.NDArray[np.float32]]
    members: int


class Translator:
    """A loaded checkpoint in one direction.

    Made by `medcyclegan.load_translator`. Calling it takes a path, a MetaTensor, a nibabel image or a SimpleITK image
    and gives a `Translation` on the same grid. A model of several contrasts takes a sequence of them in the order of
    `contrasts`, or one MetaTensor (C, X, Y, Z), and gives a `Translation` on the grid of the first. The three stages of
    a call, `read`, `predict` and `finish`, can be called one by one, so that reading and writing go on while the
    network is busy.

    Args:
        generator: the network, a plain `nn.Module` in evaluation mode on `device`.
        preparation: how source volumes come onto the working grid.
        scaler: what [-1, 1] means in the target domain.
        modality: of the target domain.
        window: size of the windows in training: along the two axes of a slice of `plane` in RAS order, or (X, Y, Z).
        device: where `generator` is.
        description: goes into the header of written files.
        spatial_dims: 2 or 3, of the generator.
        plane: of the slices in training; of no meaning in 3D.
        neighbors: slices on either side that the generator takes and gives as channels; 0 in 3D.
        statistics: of instance norms, see `inference.statistics`.
        bf16: compute in bfloat16 where that is measured to change the result by less than 2 HU.
        ensemble: planes and flips.
        backward: the generator of the other direction, for the cycle map.
        cohort: features of the training volumes (`inference.quality.features`); None where they are unknown.
        others: further checkpoints of the ensemble, in the same preparation and units.
        contrasts: names of the contrasts that it takes, in order, where it takes several.
        further: how each contrast after the first is prepared.
    """

    def __init__(
        self,
        generator: nn.Module,
        *,
        preparation: Preparation,
        scaler: Scaler,
        modality: str,
        window: Sequence[int],
        device: torch.device,
        description: str = "medcyclegan",
        spatial_dims: int = 2,
        plane: Plane = "axial",
        neighbors: int = 0,
        statistics: Statistics = "window",
        bf16: bool = False,
        ensemble: Ensemble | None = None,
        backward: nn.Module | None = None,
        cohort: Sequence[dict[str, Any]] | None = None,
        others: Sequence[Translator] = (),
        contrasts: Sequence[str] = (),
        further: Sequence[Preparation] = (),
    ) -> None:
        check_statistics(statistics)
        if spatial_dims not in (2, 3) or plane not in ACROSS or len(window) != spatial_dims:
            raise ValueError(f"a window {tuple(window)} does not fit {spatial_dims} dimensions of plane {plane!r}")
        if len(further) != max(0, len(contrasts) - 1):
            raise ValueError(f"{len(contrasts)} contrasts need {len(contrasts) - 1} further preparations")
        self.generator = generator
        self.preparation = preparation
        self.contrasts = tuple(contrasts)
        self.further = tuple(further)
        self.scaler = scaler
        self.modality = modality
        self.window = tuple(window)
        self.device = device
        self.description = description
        self.spatial_dims = spatial_dims
        self.plane: Plane = plane
        self.neighbors = neighbors
        self.statistics: Statistics = statistics
        self.bf16 = bf16
        self.ensemble = ensemble or Ensemble()
        self.backward = backward
        self.cohort = cohort
        self.others = tuple(others)
        self._bf16_checked = False
        if spatial_dims == 3 and self.ensemble.planes:
            raise InputError("this checkpoint works on 3D patches, which have no plane.", "Leave out --planes.")
        for number, other in enumerate(self.others, start=2):
            own = (preparation, scaler, modality, self.contrasts, self.further)
            if (other.preparation, other.scaler, other.modality, other.contrasts, other.further) != own:
                raise InputError(
                    f"checkpoint {number} of the ensemble prepares its volumes in another way than the first.",
                    "Fuse checkpoints of trainings on the same prepared folder.",
                )

    def __call__(
        self,
        image: Any,
        *,
        body: npt.NDArray[np.bool_] | None = None,
        trust: bool = False,
        progress: Progress | None = None,
    ) -> Translation:
        """Translate one volume.

        Args:
            image: a path, MetaTensor, nibabel image or SimpleITK image of the source domain; of several contrasts a
                sequence of these, which need not share a grid, or a MetaTensor (C, X, Y, Z).
            body: (X, Y, Z) on the (first) image's grid; found from the intensities when not given.
            trust: make the trust maps too.
            progress: watches the slices.

        Raises:
            InputError: if the volume cannot be read or prepared, or the number of contrasts is not that of the model.
        """
        source = self.read(image, body)
        return self.finish(source, self.predict(source, trust=trust, progress=progress))

    def read(self, image: Any, body: npt.NDArray[np.bool_] | None = None) -> Source:
        """The first stage: read and prepare. Arguments and errors are those of a call."""
        volumes = [as_volume(part) for part in self._parts(image)]
        volume = volumes[0]
        codes = (volume.meta["sform_code"], volume.meta["qform_code"]) if "sform_code" in volume.meta else None
        case = prepare_contrasts(volumes, [self.preparation, *self.further], body, names=self.contrasts)
        planes = {self.plane, *self.ensemble.planes}
        if "picture" in volume.meta and (self.spatial_dims == 3 or self.neighbors or planes != {"axial"}):
            name = volume.meta["filename_or_obj"]
            raise InputError(
                f"{name}: a picture is one axial slice, and this model or ensemble takes more.",
                "Give the volume that it was made of.",
            )
        return Source(case, codes)

    def _parts(self, image: Any) -> Sequence[Any]:
        """The volumes of the contrasts, in order."""
        several = isinstance(image, list | tuple)
        if not several and isinstance(image, MetaTensor) and image.ndim == 4 and image.shape[0] > 1 and self.contrasts:
            several, image = True, [MetaTensor(part[None], meta=image.meta) for part in image.as_tensor()]
        parts = image if several else [image]
        if len(parts) != max(1, len(self.contrasts)):
            takes = f"{len(self.contrasts)} contrasts, {', '.join(self.contrasts)}" if self.contrasts else "one volume"
            raise InputError(
                f"{len(parts)} volume{'s' * (len(parts) != 1)} given, and the model takes {takes}.",
                "Give all of them, in this order." if self.contrasts else "Translate them one by one.",
            )
        return parts

    def predict(self, source: Source, *, trust: bool = False, progress: Progress | None = None) -> Prediction:
        """The second stage, and the only one that runs the network."""
        case, watch = source.case, progress or Silent()
        every = [self, *self.others]
        for translator in every:
            translator._check_bf16(case)
        functions = [(_function(translator, watch), translator.plane) for translator in every]
        if self.ensemble.fuse == "mean" and not trust:
            values, count = _streamed_mean(functions, case, self.ensemble)
            return Prediction(values, {}, count)
        parts = [values for _, values in members(functions, case.image, case.body, self.ensemble)]
        result, count = fused(parts, self.ensemble.fuse), len(parts)
        if not trust:
            return Prediction(result, {}, count)
        return Prediction(result, self.trust_maps(case, result, self._opinions(parts, functions, case), watch), count)

    def opinions(self, source: Source) -> list[npt.NDArray[np.float32]]:
        """What every member says, each (X, Y, Z) in [-1, 1]; where there is one member only, also its view of the
        mirrored volume, because a spread needs a second opinion."""
        functions = [(_function(translator, Silent()), translator.plane) for translator in [self, *self.others]]
        case = source.case
        parts = [values for _, values in members(functions, case.image, case.body, self.ensemble)]
        return self._opinions(parts, functions, case)

    def _opinions(
        self,
        parts: list[npt.NDArray[np.float32]],
        functions: Sequence[tuple[Any, Plane]],
        case: PreparedCase,
    ) -> list[npt.NDArray[np.float32]]:
        if len(parts) > 1:
            return parts
        (plane,) = self.ensemble.planes or (self.plane,)
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
            for name, values in prediction.trust.items()
        }
        record: dict[str, Any] = {"members": prediction.members}
        if self.cohort:
            unlike = flags(features(case), self.cohort, self.preparation.modality, self.contrasts)
            record |= {"cohort": "known", "flags": unlike}
        else:
            record |= {"cohort": "unknown: the checkpoint does not describe its training volumes", "flags": []}
        record["flags"] += coverage_flags(case.further, self.contrasts, APART_MM)
        if case.blanked_ml:
            record["flags"].append(
                f"{case.blanked_ml:.0f} mL at the body were overwritten with one value (a defaced face?); the result "
                "is empty there, which is not the truth"
            )
        if self.modality == "CT":
            record["flagged_slices"] = jumping_slices(array, case.source_grid)
        if "spread" in prediction.trust and self.modality == "CT":
            record["spread_threshold_hu"] = SPREAD_THRESHOLD_HU
            record["share_above_threshold"] = round(share_above(prediction.trust["spread"], case.body), 5)
        return Translation(array, case.source_grid, self.modality, self.description, source.codes, maps, record)

    def _translate(
        self,
        generator: nn.Module,
        image: npt.NDArray[np.float32],
        body: npt.NDArray[np.bool_],
        plane: Plane,
        *,
        statistics: Statistics | None = None,
        bf16: bool | None = None,
        out_contrasts: int = 1,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        window = self.window if self.spatial_dims == 3 else plane_window(self.window, self.plane, plane)
        return translate_volume(
            generator,
            image,
            body,
            window=window,
            device=self.device,
            spatial_dims=self.spatial_dims,
            plane=plane,
            neighbors=self.neighbors,
            statistics=statistics or self.statistics,
            bf16=self.bf16 if bf16 is None else bf16,
            out_contrasts=out_contrasts,
            progress=progress,
        )

    def _check_bf16(self, case: PreparedCase) -> None:
        """Fall back to float32 for good where bfloat16 is not accurate enough for this network."""
        if not self.bf16 or self._bf16_checked or not case.body.any():
            return
        region: list[Any] = [slice(0, n) for n in case.body.shape]
        if self.spatial_dims == 2:
            across = ACROSS[self.plane]
            filled = case.body.sum(axis=tuple(axis for axis in range(3) if axis != across))
            middle = int(filled.argmax())
            region[across] = slice(max(0, middle - self.neighbors), middle + self.neighbors + 1)
        else:
            for axis, length in enumerate(self.window):
                start = max(0, (case.body.shape[axis] - length) // 2)
                region[axis] = slice(start, start + length)
        image, body = case.image[(..., *region)], case.body[tuple(region)]
        fast, exact = (
            self._translate(self.generator, image, body, self.plane, statistics="window", bf16=bf16)
            for bf16 in (True, False)
        )
        difference = float(np.abs(fast - exact)[body].mean()) if body.any() else 0.0
        # Not <=, so that NaN is refused too.
        self.bf16 = difference < BF16_LIMIT
        self._bf16_checked = True

    def trust_maps(
        self,
        case: PreparedCase,
        result: npt.NDArray[np.float32],
        opinions: Sequence[npt.NDArray[np.float32]],
        progress: Progress | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The maps of `inference.uncertainty` by name, (X, Y, Z), of a result that need not be this translator's own.

        Of several contrasts, `structure` and `cycle` are the means over all of them.

        Args:
            case: the source.
            result: (X, Y, Z) in [-1, 1] on the working grid.
            opinions: what `opinions` gave.
            progress: watches the slices of the translation back.
        """
        width = self.scaler.high - self.scaler.low
        inside = np.where(case.body, result, np.float32(-1))
        maps = {
            "spread": np.where(case.body, spread(result, opinions, width), 0).astype(np.float32),
            "structure": structure_disagreement(case.image, inside, case.body),
        }
        if self.backward is not None:
            returned = self._translate(
                self.backward,
                inside,
                case.body,
                self.plane,
                out_contrasts=max(1, len(self.contrasts)),
                progress=progress,
            )
            maps["cycle"] = cycle_residual(case.image, returned, case.body)
        maps["combined"] = combined(maps, case.body)
        return maps


def _function(translator: Translator, watch: Progress) -> Any:
    return lambda image, body, plane: translator._translate(translator.generator, image, body, plane, progress=watch)


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
