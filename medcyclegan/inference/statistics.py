"""Instance-norm statistics shared by neighboring windows, against brightness jumps between slices.

Instance norm (Ulyanov et al. 2016, eq. 4) subtracts from each channel its mean over one window and divides by its
standard deviation there. Two neighboring slices or tiles show a little more or less skull, and the same tissue comes
out brighter or darker. Here the statistics are *gathered* in a first pass, pooled, and *frozen* for the second:

    "window"      every window its own, as in training; one pass
    "neighbors"   pooled with Gaussian weights over neighboring slices
    "volume"      pooled over the whole volume

Pooling is that of one instance norm over all windows together: the mean of the means, and the mean of the squares less
the square of that mean (law of total variance).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medcyclegan.errors import InputError

Statistics = Literal["window", "neighbors", "volume"]
# Standard deviation of the weights of neighboring slices, in slices; where statistics were gathered of fewer slices,
# in steps between those. On real heads of 2 mm slices, 6 moved the result by 8 to 10 HU and 1.5 by 2 to 3.
NEIGHBORS_SD = 1.5
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def check_statistics(statistics: str) -> None:
    if statistics not in get_args(Statistics):
        allowed = ", ".join(get_args(Statistics))
        raise InputError(f"statistics of instance norms are one of {allowed}, got '{statistics}'.")


class SharedNormNetwork(nn.Module):
    """A network with the weights of another, whose instance norms can be gathered and frozen.

    Layers of other kinds stay as they are: batch norm has no statistics of the window, group and layer norm keep
    theirs. `gathers` says whether there is anything to gather.

    Args:
        network: left as it is; its parameters are shared and not copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        if any(_has_window_statistics(module) for module in network.modules()):
            tensors = [*network.parameters(), *network.buffers()]
            self.network = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
            if _has_window_statistics(self.network):
                self.network = _SharedNorm(self.network)
            for module in list(self.network.modules()):
                for name, child in module.named_children():
                    if _has_window_statistics(child) and not isinstance(module, _SharedNorm):
                        setattr(module, name, _SharedNorm(child))
            for module in self.network.modules():
                # This copy lives for one volume, so layers may cache transformed weights.
                if callable(cache := getattr(module, "cache_kernels", None)):
                    cache()
        self.norms = [module for module in self.network.modules() if isinstance(module, _SharedNorm)]
        self._positions: list[float] = []

    @property
    def gathers(self) -> bool:
        return bool(self.norms)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)
        return result

    def gather(self, positions: Sequence[float]) -> None:
        """Keep the statistics of the next windows; `positions` are their slice indices, (B,)."""
        self._positions.extend(positions)
        for norm in self.norms:
            norm.gathering, norm.frozen = True, None

    def forget_after(self, count: int) -> None:
        """Drop what was gathered beyond the first `count` windows: the call that gathered it failed half-way."""
        del self._positions[count:]
        for norm in self.norms:
            while norm.gathered and sum(len(mean) for mean, _ in norm.gathered) > count:
                norm.gathered.pop()

    @property
    def gathered(self) -> int:
        """Number of windows whose statistics are kept."""
        return len(self._positions)

    def free(self) -> None:
        """Back to statistics per window; gathered ones are dropped."""
        for norm in self.norms:
            norm.gathering, norm.frozen = False, None

    def freeze(self, positions: Sequence[float], statistics: Statistics) -> None:
        """Use pooled statistics for the next windows; `positions` are their slice indices, (B,)."""
        if not self._positions:
            raise ValueError("freeze needs statistics, and none were gathered")
        there = torch.tensor(self._positions, dtype=torch.float64)
        if statistics == "volume":
            weights = torch.ones(1, len(there), dtype=torch.float64)
        else:
            step = torch.diff(there.unique()).median().item() if len(there.unique()) > 1 else 1.0
            distance = torch.tensor(list(positions), dtype=torch.float64)[:, None] - there
            distance = distance / max(NEIGHBORS_SD, step)
            # If all gathered windows are far, the nearest one counts alone, since all weights would underflow.
            nearest = distance.abs().min(dim=1, keepdim=True).values
            weights = torch.exp(-0.5 * (distance**2 - nearest**2))
        weights = weights / weights.sum(dim=1, keepdim=True)
        for norm in self.norms:
            norm.freeze(weights)


class _SharedNorm(nn.Module):
    """One instance norm; statistics in float32 whatever the input's type."""

    norm: Any  # an nn.InstanceNorm1d, 2d or 3d

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.gathering = False
        self.gathered: list[tuple[Tensor, Tensor]] = []  # per batch of windows, (B, C): variance and mean
        self.frozen: tuple[Tensor, Tensor] | None = None  # (B or 1, C): factor and offset

    def freeze(self, weights: Tensor) -> None:
        self.gathering = False
        if len(self.gathered) != 1 or self.gathered[0][0].dtype != torch.float64:
            # Once, on the processor: not every device has float64.
            variances, means = zip(*self.gathered, strict=True)
            self.gathered = [(torch.cat(variances).cpu().double(), torch.cat(means).cpu().double())]
        variance, mean = self.gathered[0]
        pooled = weights @ mean
        factor = (weights @ (variance + mean**2) - pooled**2).clamp(min=0).add(self.norm.eps).rsqrt()
        offset = -pooled * factor
        if self.norm.affine:
            gain, bias = (part.detach().cpu().double() for part in (self.norm.weight, self.norm.bias))
            factor, offset = factor * gain, offset * gain + bias
        self.frozen = factor.float(), offset.float()

    def forward(self, x: Tensor) -> Tensor:
        spatial = tuple(range(2, x.ndim))
        if self.gathering:
            self.gathered.append(torch.var_mean(x.float(), dim=spatial, correction=0))
        if self.frozen is None:
            result: Tensor = self.norm(x)
            return result
        factor, offset = (part.to(x.device).reshape(*part.shape, *(1 for _ in spatial)) for part in self.frozen)
        return torch.addcmul(offset, x, factor)


def _has_window_statistics(module: nn.Module) -> bool:
    return isinstance(module, _INSTANCE_NORMS) and not module.track_running_stats
