"""A trained generator as a function from volume to volume."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from torch import nn

from medcyclegan.inference.planes import translate_slices
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import as_volume, grid_of
from medcyclegan.io.writer import to_int16, write_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation, prepare, restore


@dataclass(frozen=True)
class Translation:
    """A translated volume on the grid of its source.

    Attributes:
        array: (X, Y, Z); int16 HU for CT, float32 in the training cohort's typical units for MR.
        grid: the source's shape and affine.
        modality: "CT" or "MR".
        description: what made it, for the file's header.
        nifti_codes: sform and qform code of the source, if it was NIfTI: what its world coordinates mean.
    """

    array: npt.NDArray[Any]
    grid: Grid
    modality: str
    description: str
    nifti_codes: tuple[int, int] | None = None

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


class Translator:
    """A loaded checkpoint in one direction.

    Made by `medcyclegan.load_translator`. Calling it takes a path, a MetaTensor, a nibabel image or a SimpleITK image
    and gives a `Translation` on the same grid.

    Args:
        generator: the network, a plain `nn.Module` in evaluation mode on `device`.
        preparation: how source volumes come onto the working grid.
        scaler: what [-1, 1] means in the target domain.
        modality: of the target domain.
        window: size of the slices in training, (X, Y).
        device: where `generator` is.
        description: goes into the header of written files.
    """

    def __init__(
        self,
        generator: nn.Module,
        *,
        preparation: Preparation,
        scaler: Scaler,
        modality: str,
        window: tuple[int, ...],
        device: torch.device,
        description: str = "medcyclegan",
    ) -> None:
        self.generator = generator
        self.preparation = preparation
        self.scaler = scaler
        self.modality = modality
        self.window = window
        self.device = device
        self.description = description

    def __call__(
        self,
        image: Any,
        *,
        body: npt.NDArray[np.bool_] | None = None,
        progress: Progress | None = None,
    ) -> Translation:
        """Translate one volume.

        Args:
            image: a path, MetaTensor, nibabel image or SimpleITK image of the source domain.
            body: (X, Y, Z) on the image's grid; found from the intensities when not given.
            progress: watches the slices.

        Raises:
            InputError: if the volume cannot be read or prepared.
        """
        volume = as_volume(image)
        case = prepare(volume, self.preparation, body)
        values = translate_slices(
            self.generator, case.image, case.body, window=self.window, device=self.device, progress=progress or Silent()
        )
        restored = restore(values, case.grid, case.source_grid, self.scaler, case.body)
        array = to_int16(restored) if self.modality == "CT" else restored
        codes = (volume.meta["sform_code"], volume.meta["qform_code"]) if "sform_code" in volume.meta else None
        return Translation(array, grid_of(volume), self.modality, self.description, codes)
