"""Windows of a volume run through a network: as large a batch as memory allows, in tiles if one does not fit.

Words used here. *Window*: what the network sees at once, a slice, a stack of neighboring slices or a 3D patch. *Tile*:
a part of a window that does not fit; tiles overlap by half and are blended with Gaussian weights. Windows are
padded with background, -1, never with 0, which is soft tissue.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medcyclegan.errors import InputError
from medcyclegan.inference.statistics import SharedNormNetwork, Statistics
from medcyclegan.machine import free_memory

BACKGROUND = -1.0
OVERLAP = 0.5
# Larger batches were no faster on a GPU, and an eighth slower on a processor, whose two threads take one slice each.
BATCH_VOXELS = {"cpu": 2 * 256 * 256, "cuda": 64 * 256 * 256}
# Peak memory of a network over the input and output of its largest layer: padded copies, residuals and workspaces of
# convolutions (a ResNet of 64 filters: 4 kB per voxel, of which the largest layer is 0.8 kB).
PEAK_OVER_LAYER = 5
MEMORY_SHARE = 0.7  # of the free memory
PROBE = 64  # voxels per axis at which a network's need of memory is measured
SMALLEST_TILE = 64


class WindowRunner:
    """Runs a network over windows of any number and size without running out of memory.

    A batch that does not fit is halved, a single window that does not fit is cut into overlapping tiles. Sizes that
    fit are remembered.

    Args:
        network: (B, C, *spatial) in [-1, 1] to (B, C', *spatial), on `device`, in evaluation mode.
        device: where it runs.
        bf16: compute under bfloat16 autocast.
        tile: cut windows that are longer than this along any axis; None where they fit.
    """

    def __init__(
        self, network: nn.Module, *, device: torch.device, bf16: bool = False, tile: Sequence[int] | None = None
    ) -> None:
        self.network = SharedNormNetwork(network)
        self.device = device
        self.bf16 = bf16
        self.tile = tuple(tile) if tile is not None else None
        self._most_voxels: int | None = None  # in one call of the network, once measured

    def batch_size(self, voxels: int, channels: int, spatial_dims: int) -> int:
        """Number of windows of `voxels` voxels per call, at least 1."""
        most = BATCH_VOXELS.get(self.device.type, BATCH_VOXELS["cpu"])
        return max(1, min(most, self._affordable(max(most, voxels), channels, spatial_dims)) // voxels)

    def fits(self, shape: Sequence[int], channels: int) -> bool:
        """True if a window of `shape` can be shown whole."""
        voxels = int(np.prod(shape))
        return voxels <= self._affordable(voxels, channels, len(shape))

    def gather(self, windows: Tensor, positions: Sequence[float]) -> None:
        """First pass: keep the statistics of `windows`, (B, C, *spatial), at slices `positions`, (B,)."""
        self._run(windows, positions, "gather")

    def __call__(self, windows: Tensor, positions: Sequence[float], statistics: Statistics = "window") -> Tensor:
        """Translate.

        Args:
            windows: (B, C, *spatial) float32 in [-1, 1], on any device.
            positions: (B,) slice indices, by which gathered statistics are looked up.
            statistics: "window", or how to pool what was gathered before.

        Returns:
            (B, C', *spatial) float32 on the runner's device.

        Raises:
            InputError: not even a small tile fits into memory.
        """
        return self._run(windows, positions, statistics)

    def _run(self, windows: Tensor, positions: Sequence[float], what: str) -> Tensor:
        if self.tile is not None and any(n > t for n, t in zip(windows.shape[2:], self.tile, strict=True)):
            parts = [self._in_tiles(windows[i : i + 1], positions[i], what) for i in range(len(windows))]
            return torch.cat(parts)
        size = self.batch_size(int(np.prod(windows.shape[2:])), windows.shape[1], windows.ndim - 2)
        parts, start = [], 0
        while start < len(windows):
            part, known = slice(start, start + size), self.network.gathered
            try:
                parts.append(self._show(windows[part], positions[part], what))
            except (RuntimeError, MemoryError) as error:
                self.network.forget_after(known)
                if not _out_of_memory(error):
                    raise
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                shown = min(size, len(windows) - start)
                if shown > 1:
                    size = shown // 2
                    self._most_voxels = size * int(np.prod(windows.shape[2:]))
                    continue
                self._cut_smaller(windows.shape[2:], error)
                rest = self._run(windows[start:], positions[start:], what)
                return torch.cat([*parts, rest])
            start += size
        return torch.cat(parts)

    def _show(self, windows: Tensor, positions: Sequence[float], what: str) -> Tensor:
        """One call of the network."""
        if what == "gather":
            self.network.gather(positions)
        elif what == "window":
            self.network.free()
        else:
            self.network.freeze(positions, what)  # type: ignore[arg-type]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            x = windows.to(self.device, non_blocking=True)
            if what not in ("gather", "window") and self.bf16 and x.ndim == 4:
                # With frozen norms nothing between the convolutions needs the channels apart: a sixth faster.
                x = x.contiguous(memory_format=torch.channels_last)
            result: Tensor = self.network(x).float()
        return result

    def _in_tiles(self, window: Tensor, position: float, what: str) -> Tensor:
        """One window, blended from overlapping tiles."""
        tile = tuple(min(n, t) for n, t in zip(window.shape[2:], self.tile or window.shape[2:], strict=True))
        result: Any = sliding_window_inference(
            window,
            roi_size=tile,
            sw_batch_size=self.batch_size(int(np.prod(tile)), window.shape[1], window.ndim - 2),
            predictor=lambda tiles: self._run(tiles, [position] * len(tiles), what),
            overlap=OVERLAP,
            roi_weight_map=_gaussian_weights(tile).to(self.device),
            padding_mode="constant",
            cval=BACKGROUND,
            sw_device=self.device,
            device=window.device if window.numel() * 8 > MEMORY_SHARE * free_memory(self.device) else self.device,
        )
        return torch.as_tensor(result)

    def _cut_smaller(self, shape: Sequence[int], error: BaseException) -> None:
        longest = max(shape)
        if longest <= SMALLEST_TILE:
            raise InputError(
                f"there is not enough memory on {self.device} for a window of {' x '.join(map(str, shape))} voxels.",
                "Free some, or use --device cpu.",
            ) from error
        self.tile = tuple(min(n, max(SMALLEST_TILE, -(-longest // 2))) for n in shape)
        warnings.warn(
            f"a window of {' x '.join(map(str, shape))} voxels does not fit into the memory of {self.device}; it is "
            f"blended from overlapping tiles of {' x '.join(map(str, self.tile))}",
            stacklevel=2,
        )

    def _affordable(self, wanted: int, channels: int, spatial_dims: int) -> int:
        """Voxels that one call may have, at least `wanted` where those fit."""
        if self._most_voxels is None:
            usable = MEMORY_SHARE * free_memory(self.device)
            # No layer is larger than the widest one at full resolution. If that fits, nothing is measured.
            weights = [p for p in self.network.parameters() if p.ndim > 1]
            widest = max((p.shape[0] + p.shape[1] for p in weights), default=2 * channels)
            if wanted * PEAK_OVER_LAYER * 4 * widest <= usable:
                return wanted
            self._most_voxels = max(1, int(usable / self._bytes_per_voxel(channels, spatial_dims)))
        return self._most_voxels

    def _bytes_per_voxel(self, channels: int, spatial_dims: int) -> float:
        """Peak memory, from what the layers of the network take and give for a small window."""
        largest = 1

        def look(_: nn.Module, given: tuple[Any, ...], result: Any) -> None:
            nonlocal largest
            tensors = [t for t in (*given, result) if isinstance(t, Tensor)]
            largest = max(largest, sum(t.numel() * t.element_size() for t in tensors))

        leaves = [m for m in self.network.modules() if not list(m.children())]
        hooks = [leaf.register_forward_hook(look) for leaf in leaves]
        side = PROBE if spatial_dims == 2 else PROBE // 2
        try:
            self._show(torch.full((1, channels, *(side,) * spatial_dims), BACKGROUND), [0.0], "window")
        finally:
            for hook in hooks:
                hook.remove()
        return PEAK_OVER_LAYER * largest / side**spatial_dims


def _gaussian_weights(shape: Sequence[int]) -> Tensor:
    """(*shape) weights of a tile, standard deviation an eighth of each axis, 1 in the middle.

    MONAI's own are held above a thousandth, so that near the border of the volume every tile weighs the same and the
    step between two of them shows.
    """
    weights = torch.ones(())
    for length in shape:
        place = (torch.arange(length, dtype=torch.float32) - (length - 1) / 2) / (length / 8)
        weights = weights[..., None] * torch.exp(-0.5 * place**2)
    return weights


def _out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in message for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
