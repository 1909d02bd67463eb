"""Times of two programs within one run, and how fast the machine could be."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WARM_UP = 2  # calls that are not counted
CEILING_SIZE = {"cpu": 1536, "cuda": 8192}  # rows and columns of the products that measure the ceiling


def interleaved(
    runs: dict[str, Callable[[], Any]], repeats: int, device: torch.device, warm_up: int = WARM_UP
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each, and of processor time over all cores, one call of each in turn."""
    walls: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(warm_up + repeats):
        for name, run in runs.items():
            started, cpu = now(device), time.process_time()
            run()
            if repeat >= warm_up:
                walls[name].append(now(device) - started)
                busy[name].append(time.process_time() - cpu)
            else:
                now(device)
    return tuple({n: statistics.median(each) for n, each in times.items()} for times in (walls, busy))  # type: ignore[return-value]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def product_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products on all cores, the best of a few ways and times."""
    n = CEILING_SIZE["cuda" if device.type == "cuda" else "cpu"]
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=random).to(device, dtype) for _ in "ab")
    image = b.t().reshape(1, n, 1, n)  # the same product as a convolution of width 1, which has kernels of its own
    products: list[Callable[[], Tensor]] = [lambda: a @ b, lambda: F.conv2d(image, a[:, :, None, None])]
    best = 0.0
    with torch.no_grad():
        for product in products:
            product()
            for _ in range(3):
                started = now(device)
                product()
                best = max(best, 2 * n**3 / (now(device) - started))
    return best


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
