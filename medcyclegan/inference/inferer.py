"""The windows of a translation as a MONAI inferer: slices along planes, or 3D patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medcyclegan.inference.ensemble import Ensemble, Fuse, fused, members
from medcyclegan.inference.planes import Plane
from medcyclegan.inference.sliding_window import SlidingWindow, translate_volume
from medcyclegan.inference.statistics import Statistics
from medcyclegan.inference.tiles import BACKGROUND


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class TranslatorInferer(Inferer):
    """Runs a translating network over prepared volumes as `Translator` does.

    Args:
        roi_size: size of the windows in training: along the two axes of a slice in RAS order, or (X, Y, Z).
        plane: of the slices in training.
        neighbors: slices on either side that the network takes and gives as channels.
        norm_statistics: of instance norms, see `inference.statistics`.
        planes: along which the slices are taken; none: `plane`.
        flips: fuse with the mirrored volume.
        fuse: "mean" or "median".
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        *,
        plane: Plane = "axial",
        neighbors: int = 0,
        norm_statistics: Statistics = "window",
        planes: Sequence[Plane] = (),
        flips: bool = False,
        fuse: Fuse = "mean",
    ) -> None:
        super().__init__()
        ensemble = Ensemble(tuple(planes), flips, fuse)
        self.window = SlidingWindow(tuple(roi_size), plane, neighbors, norm_statistics, ensemble)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Translate.

        Args:
            inputs: (B, 1, X, Y, Z) on the working grid, axes RAS, in [-1, 1]; exactly -1 is background.
            network: (B, C, *spatial) in [-1, 1] to the same shape and range.

        Returns:
            (B, 1, X, Y, Z) float32 in [-1, 1] on the device of `inputs`; background where `inputs` is.
        """
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise ValueError(f"inputs are (B, 1, X, Y, Z), got {tuple(inputs.shape)}")
        if args or kwargs:
            raise TypeError("a translating network takes the volume only")
        module = network if isinstance(network, nn.Module) else _Function(network)
        device = next((p.device for p in module.parameters()), inputs.device)
        window = replace(self.window, device=device)

        def translate(image: Any, body: Any, plane: Plane) -> Any:
            return translate_volume(module, image, body, window.along(plane))

        results = []
        for volume in inputs:
            image = torch.as_tensor(volume).detach().float().cpu().numpy()
            parts = members([(translate, window.plane)], image, image[0] > BACKGROUND, window.ensemble)
            results.append(torch.from_numpy(fused([values for _, values in parts], window.ensemble.fuse)))
        return torch.stack(results).to(inputs.device)
