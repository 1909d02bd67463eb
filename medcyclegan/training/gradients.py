"""The gradients of one half of a step: direction by direction, and joined where several processes train together."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medcyclegan import ranks
from medcyclegan.training.objectives import Images, Losses, Objective


class RoleLosses(nn.Module):
    """The losses of one role, as a module of its networks.

    `DistributedDataParallel` joins the gradients of the module it wraps, whose forward this is, however often the
    objective runs each network in it.

    Args:
        objective: whose losses it computes.
        role: "generators" or "discriminators".
    """

    def __init__(self, objective: Objective, role: str) -> None:
        super().__init__()
        self.role = role
        self.objective = objective
        names = objective.generators if role == "generators" else objective.discriminators
        self.trained = nn.ModuleDict({name: objective.networks[name] for name in names})

    def forward(self, batch: Images, images: Images, direction: str) -> tuple[Losses, Images]:
        """The weighted losses of a direction, and the generated images (none by discriminators), detached."""
        if self.role == "discriminators":
            return self.objective.discriminator_losses(batch, images, direction), {}
        losses, made = self.objective.generator_losses(batch, direction)
        return losses, {name: image.detach() for name, image in made.items()}


class RoleGradients:
    """Computes the gradients of one role; of several processes, the mean over all of them.

    Args:
        objective: its networks are on their device; several processes all start from the first one's weights.
        role: "generators" or "discriminators".
        device: where the networks are.
        bf16: compute the losses under bfloat16 autocast.
    """

    def __init__(self, objective: Objective, role: str, device: torch.device, bf16: bool = False) -> None:
        self.directions = objective.directions
        self.device = device
        self.bf16 = bf16
        self.losses: RoleLosses | DistributedDataParallel = RoleLosses(objective, role)
        if ranks.rank_and_world()[1] > 1:
            # One direction does not use all weights, and in a foreign network a whole step may not.
            # Running statistics are made equal by the trainer, once per step.
            self.losses = DistributedDataParallel(self.losses, find_unused_parameters=True, broadcast_buffers=False)

    def add(self, batch: Images, images: Images, share: float = 1.0, last: bool = True) -> tuple[Losses, Images]:
        """Add the gradients of `share` times the sum of all losses to the parameters' `grad`.

        Args:
            batch, images: see `objectives`.
            share: of this batch in what is averaged.
            last: no more gradients come in this step, so that processes join them now.

        Returns:
            The losses and images of all directions, detached.
        """
        found: Losses = {}
        made: Images = {}
        for direction in self.directions:
            # One direction at a time needs less memory. `no_sync` must hold the forward too.
            joins = last and direction == self.directions[-1]
            ddp = self.losses if isinstance(self.losses, DistributedDataParallel) else None
            with ddp.no_sync() if ddp is not None and not joins else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    losses, fakes = self.losses(batch, images, direction)
                (share * torch.stack(list(losses.values())).sum()).backward()
            found |= {name: loss.detach() for name, loss in losses.items()}
            made |= fakes
        return found, made
