"""Objectives, one file each: the mathematics of a method, tensors in and losses out.

An objective owns its networks and says which are trained as generators and which as discriminators. A step is:

1. `generator_losses(real)` gives the weighted terms that the generators minimize and the images made on the way;
2. `discriminator_losses(real, images)` gives the terms that the discriminators minimize.

`real` maps "a" and "b" to (B, C, *spatial) in [-1, 1]. `images` are named `fake_b` (from real a), `cycle_a`, and so on.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

Losses = dict[str, Tensor]
Images = dict[str, Tensor]


class Objective(Protocol):
    """One method of training."""

    networks: nn.ModuleDict
    generators: tuple[str, ...]
    discriminators: tuple[str, ...]

    def generator_losses(self, real: Images) -> tuple[Losses, Images]: ...

    def discriminator_losses(self, real: Images, images: Images) -> Losses: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None: ...
