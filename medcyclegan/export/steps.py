"""Classes that the configs of an exported bundle name: reading, restoring the source grid, writing, and training.

They work beside MONAI's own transforms in `preprocessing` and `postprocessing` of a bundle, and in any `Compose`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TraceKeys

from medcyclegan import config, factory
from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.nifti import kept_fields
from medcyclegan.io.reader import case_id, grid_of, list_volumes, read_volume
from medcyclegan.io.writer import to_int16, write_volume
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import restore


class ReadVolumed(MapTransform):
    """Read the volumes at `keys`, paths of files or DICOM folders, as `io.reader.read_volume` does: HU, RAS+ affine."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = read_volume(result[key])
        return result


class RestoreVolumed(MapTransform):
    """Bring network output back to the grid and the unit of the source: one linear interpolation, as `restore` does.

    Args:
        keys: keys of tensors (1, X, Y, Z) in [-1, 1] on the working grid.
        source_key: key of the volume that was translated; it remembers its grid.
        body_key: key of its body on the working grid, (1, X, Y, Z); outside becomes the scaler's `low`.
        scaler: what [-1, 1] means.
        whole_numbers: round to whole HU, as CT is stored.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        source_key: Hashable = "image",
        body_key: Hashable = "body",
        *,
        scaler: Scaler,
        whole_numbers: bool = True,
    ) -> None:
        super().__init__(keys)
        self.source_key = source_key
        self.body_key = body_key
        self.scaler = scaler
        self.whole_numbers = whole_numbers

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        source = result[self.source_key]
        body = torch.as_tensor(result[self.body_key])[0].cpu().numpy().astype(bool)
        target = _source_grid(source)
        affine = torch.from_numpy(target.affine.copy())
        for key in self.key_iterator(result):
            values = torch.as_tensor(result[key])[0].detach().cpu().float().numpy()
            volume = restore(np.asarray(values), grid_of(source), target, self.scaler, body)
            volume = np.rint(volume) if self.whole_numbers else volume
            meta = {**source.meta, "affine": affine, "original_affine": affine, "spatial_shape": np.array(target.shape)}
            result[key] = MetaTensor(torch.from_numpy(np.ascontiguousarray(volume))[None], meta=meta)
        return result


class WriteVolumed(MapTransform):
    """Write the volumes at `keys` beside each other as `<case><postfix>.nii.gz`, atomically.

    MONAI's own writers (1.6.1) refuse volumes whose first two axes lie in a plane with the third world axis, since they
    take a volume for a picture with channels.

    Args:
        keys: keys of MetaTensors (1, X, Y, Z) with their affine and the name of their source's file.
        folder: where to.
        postfix: comes after the case id.
        whole_numbers: write int16, else float32.
        description: goes into the header.
    """

    def __init__(
        self, keys: KeysCollection, folder: str, *, postfix: str, whole_numbers: bool = True, description: str = ""
    ) -> None:
        super().__init__(keys)
        self.folder = Path(folder)
        self.postfix = postfix
        self.whole_numbers = whole_numbers
        self.description = description

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            volume = result[key]
            values = volume.as_tensor()[0].cpu().numpy()
            path = self.folder / f"{case_id(volume.meta['filename_or_obj'])}{self.postfix}.nii.gz"
            write_volume(
                path,
                to_int16(values) if self.whole_numbers else values.astype(np.float32),
                grid_of(volume),
                description=self.description,
                nifti=kept_fields(volume.meta),
            )
        return result


class BundleTrainer:
    """The `trainer` of a bundle's `train.json`: the training that made the bundle, on other data.

    The whole training is one epoch, as `TranslationTrainer` has it; under torchrun the processes train it together. Its
    output is a run of `medcyclegan train`, which can be resumed, converted with and exported again.

    Args:
        experiment: the config of the run, a YAML file.
        dataset_dir: folder with the folders `a` (source domain) and `b` (target domain) of volumes.
        run: a new folder.
        device: where to train.
        max_epochs: 1.
        steps: length of the training; None: as in `experiment`.
        handlers: more MONAI or Ignite handlers.
        allow: modules or packages of your own from which the experiment may name parts; importing runs their code.

    Raises:
        InputError: the data or the experiment cannot be used.
    """

    def __init__(
        self,
        experiment: str,
        dataset_dir: str,
        run: str,
        device: torch.device | str,
        max_epochs: int = 1,
        steps: int | None = None,
        handlers: Sequence[Any] = (),
        allow: Sequence[str] = (),
    ) -> None:
        if max_epochs != 1:
            raise InputError(f"max_epochs is {max_epochs}; a whole training is one epoch.", "Give more steps instead.")
        overrides = [] if steps is None else [f"training.steps={int(steps)}"]
        chosen = config.load(Path(experiment), overrides, allow=allow)
        folder = Path(dataset_dir)
        self.experiment = config.with_data(chosen, {"a": folder / "a", "b": folder / "b"})
        self.out = Path(run)
        self.device = str(device)
        self.handlers = tuple(handlers)

    def run(self) -> Any:
        """Prepare the volumes and train."""
        return factory.train(self.experiment, self.out, device=self.device, handlers=self.handlers)


def volumes(folder: str) -> list[dict[str, str]]:
    """Every volume of a folder as {"image": path}, sorted by case id."""
    return [{"image": str(path)} for path in list_volumes(folder).values()]


def training_volumes(folder: str) -> list[dict[str, str]]:
    """The volumes of the folders `a` and `b` in `folder`, as {"a": path} and {"b": path}."""
    return [{name: str(path)} for name in ("a", "b") for path in list_volumes(Path(folder) / name).values()]


def pairs(folder: str, references: str) -> list[dict[str, str]]:
    """Sources and references of the same case ids as {"image": path, "label": path}.

    Raises:
        InputError: a case has no counterpart.
    """
    sources, wanted = list_volumes(folder), list_volumes(references)
    alone = sorted(set(sources) ^ set(wanted))
    if alone:
        raise InputError(
            f"{folder} and {references} do not hold the same cases; without a counterpart: {', '.join(alone)}.",
            "Give files of one patient the same name in both folders.",
        )
    return [{"image": str(path), "label": str(wanted[case])} for case, path in sources.items()]


def _source_grid(volume: Any) -> Grid:
    """The grid on which a volume was before it came onto the working grid."""
    for applied in reversed(volume.applied_operations):
        if applied[TraceKeys.CLASS_NAME] == "ToWorkingGridd":
            x, y, z = (int(n) for n in applied[TraceKeys.ORIG_SIZE])
            return Grid((x, y, z), np.array(applied[TraceKeys.EXTRA_INFO]["affine"], dtype=np.float64))
    raise ValueError("this volume was not brought onto a working grid by ToWorkingGridd")
