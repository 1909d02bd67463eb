"""The translation of a volume against MONAI's `SliceInferer`.

The reference takes one slice at a time in float32, on the same network with the same weights from torch's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import SliceInferer
from torch import nn
from torch.nn import functional as F

from medcyclegan import factory
from medcyclegan.benchmark.experiments import checked_device
from medcyclegan.benchmark.plain import plain_twin
from medcyclegan.benchmark.timing import device_name, interleaved
from medcyclegan.config import Experiment, parse
from medcyclegan.errors import InputError
from medcyclegan.factory.devices import wants_bf16
from medcyclegan.inference.sliding_window import SlidingWindow, translate_volume
from medcyclegan.inference.translator import Prediction
from medcyclegan.networks.cpu import accelerate
from medcyclegan.training.checkpoint import load_checkpoint

HU_PER_UNIT = 4095 / 2  # of [-1, 1] over the whole CT window


def benchmark_convert(
    experiment: Experiment, *, size: Sequence[int], slices: int = 12, repeats: int = 3, device: str = "auto"
) -> dict[str, Any]:
    """Time the translation of a volume against MONAI's SliceInferer, float32, one slice at a time, same network.

    The volume is smooth noise and the weights are fresh, which takes as long as any others.

    Args:
        experiment: its generator.
        size: of a slice.
        slices: of the volume.
        repeats: of each; medians are compared.

    Returns:
        Plain data; `speedup`, and `mean_difference_hu` between the two results over the whole CT window.
    """
    _require_single_slices(experiment)
    where = checked_device(experiment, size, 1, repeats, device)
    if slices < 1:
        raise InputError(f"--slices is at least 1, got {slices}.")
    network = factory.make_networks(experiment)["gen_ab"].eval().requires_grad_(False).to(where)
    plain = plain_twin(network, experiment.model.generator).eval().requires_grad_(False)
    if where.type == "cpu":
        accelerate(network)
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 1, *(max(2, n // 16) for n in size), max(2, slices // 4), generator=random) * 2 - 1
    image = F.interpolate(coarse, size=(*size, slices), mode="trilinear", align_corners=False)[0, 0].numpy()
    body = np.ones(image.shape, bool)
    bf16 = wants_bf16(experiment.training.precision, where)

    def ours() -> np.ndarray:
        return translate_volume(network, image[None], body, SlidingWindow(tuple(size), device=where, bf16=bf16))[0]

    found = _against_slice_inferer(ours, plain, image, body, repeats, where, HU_PER_UNIT)
    return found | {"precision": "bf16" if bf16 else "float32", "weights": "untrained"}


def benchmark_convert_run(run: Path, volume: Path, *, repeats: int = 3, device: str = "auto") -> dict[str, Any]:
    """`benchmark_convert` of a trained run and a volume for it, as `convert` translates it.

    Whole slices on the run's working grid are shown to both networks, so that they see the same amount of background.

    Args:
        run: of a 2D model of single slices and one contrast that makes CT.
        volume: of the source domain.

    Returns:
        As there; the difference is the mean over the body, and the slices are those with body.
    """
    translator = factory.load_translator(run, device=device)
    experiment = parse(load_checkpoint(run)["experiment"], f"the config in {run}")
    _require_single_slices(experiment)
    if len(translator.channels) > 1 or translator.modality != "CT" or translator.window.plane != "axial":
        raise InputError(
            f"benchmark convert measures axial models of one contrast that make CT, and {run} is none.",
            "Measure a config instead.",
        )
    plain = plain_twin(translator.generator, experiment.model.generator).eval().requires_grad_(False)
    source = translator.read(volume)
    filled = np.flatnonzero(source.case.body.any(axis=(0, 1)))
    image, body = source.case.image[..., filled], source.case.body[..., filled]
    source = replace(source, case=replace(source.case, image=image, body=body))
    translator.window = replace(translator.window, roi_size=body.shape[:2])

    predictions: list[Prediction] = []

    def ours() -> np.ndarray:
        predictions[:] = [translator.predict(source)]
        return predictions[0].values

    hu = (translator.scaler.high - translator.scaler.low) / 2
    found = _against_slice_inferer(ours, plain, image[0], body, repeats, translator.window.device, hu)
    return found | {"precision": predictions[0].precisions[0], "weights": str(run)}


def _require_single_slices(experiment: Experiment) -> None:
    if experiment.patches.spatial_dims != 2 or experiment.patches.neighbors:
        raise InputError("benchmark convert measures 2D generators of single slices.", "Take a config of those.")


def _against_slice_inferer(
    ours: Callable[[], np.ndarray],
    plain: nn.Module,
    image: np.ndarray,
    body: np.ndarray,
    repeats: int,
    where: torch.device,
    hu_per_unit: float,
) -> dict[str, Any]:
    """Times of `ours` and of `plain` run through `image`, (X, Y, Z), and how far apart their results are in `body`."""
    volume = torch.from_numpy(np.ascontiguousarray(image))[None, None]

    def reference() -> np.ndarray:
        with torch.inference_mode():
            inferer = SliceInferer(roi_size=image.shape[:2], sw_batch_size=1, spatial_dim=2)
            given: Any = inferer(volume.to(where), plain)
        array: np.ndarray = given[0, 0].cpu().numpy()
        return array

    difference = np.abs(ours() - reference())[body]  # which warms both up
    seconds, busy = interleaved({"ours": ours, "reference": reference}, repeats, where, warm_up=0)
    return {
        "verb": "convert",
        "device": device_name(where),
        "cores": torch.get_num_threads(),
        "size": list(image.shape),
        "speedup": round(seconds["reference"] / seconds["ours"], 3),
        **{
            name: {"seconds": each, "slices_per_s": image.shape[2] / each, "cpu_seconds": busy[name]}
            for name, each in seconds.items()
        },
        "mean_difference_hu": float(difference.mean()) * hu_per_unit,
    }
