"""Which device computes, and in which precision."""

from __future__ import annotations

import torch

from medcyclegan.errors import InputError
from medcyclegan.training.trainer import bf16_is_safe


def choose_device(name: str) -> torch.device:
    """The device of a `--device` argument; "auto" takes a GPU if there is one.

    Raises:
        InputError: for an unknown name, or a device that this machine does not have.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if mps else [])]
    known = name in ("cpu", "cuda", "mps") or (name.startswith("cuda:") and name[5:].isdigit())
    if not known:
        raise InputError(f"there is no device '{name}'; allowed are auto, cpu, cuda, cuda:N and mps.")
    if name not in here and not (name == "cuda" and cuda):
        raise InputError(
            f"this machine has no usable device '{name}'; it has: {', '.join(here)}.", "Use --device auto."
        )
    return torch.device(name)


def wants_bf16(precision: str, device: torch.device) -> bool:
    return precision == "bf16" or (precision == "auto" and bf16_is_safe(device))
