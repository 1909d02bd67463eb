"""Objectives, one file each: the mathematics of a method, tensors in and losses out.

An objective owns its networks and says which are trained as generators and which as discriminators. Its losses come
per *direction* of translation, "ab" or "ba". A step is:

1. `generator_losses(batch, direction)` gives the weighted terms that the generators minimize and the images made on the
   way, for every direction;
2. `discriminator_losses(batch, images, direction)` gives the terms that the discriminator of that direction's target
   minimizes.

Each half of a step minimizes the sum over the directions. They share nothing but weights, so that they can be computed
one after the other, in less memory.

`batch` maps "a" and "b" to real images (B, C, *spatial) in [-1, 1], and "body_a" and "body_b" to where they show the
body, boolean, of the same shape. `images` are named `fake_b` (from real a), `cycle_a`, and so on.

Every objective is built with the adversarial, the reconstruction and the structure losses of the experiment, and
ignores those that its method does not use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medcyclegan.losses.adversarial import AdversarialLoss, gradient_penalty, split
from medcyclegan.losses.structure import StructureLoss, View
from medcyclegan.losses.structure.patch_nce import PatchNCE

Losses = dict[str, Tensor]
Images = dict[str, Tensor]


class Objective(Protocol):
    """One method of training.

    Attributes:
        networks: all of them, by name; an objective may add its own helpers to those it is given.
        generators, discriminators: names of those that are trained in each of a step's two halves.
        required: names of the networks that the program must make for it.
        directions: of translation, "ab" and "ba" or one of them.
        paired: whether "a" and "b" must show the same patient at the same place.
    """

    networks: nn.ModuleDict
    generators: tuple[str, ...]
    discriminators: tuple[str, ...]
    required: tuple[str, ...]
    directions: tuple[str, ...]
    paired: bool

    def generator_losses(self, batch: Images, direction: str) -> tuple[Losses, Images]: ...

    def discriminator_losses(self, batch: Images, images: Images, direction: str) -> Losses: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None: ...


def translate(generator: nn.Module, image: Tensor) -> tuple[Tensor, Tensor | None]:
    """The translation and, of a generator that has one, its attention mask (B, 1, *spatial) in [0, 1]."""
    with_mask = getattr(generator, "forward_with_mask", None)
    if with_mask is None:
        return generator(image), None
    output, mask, _ = with_mask(image)
    return output, mask


def judge(discriminator: nn.Module, loss: AdversarialLoss, real: Tensor, fake: Tensor, domain: str) -> Losses:
    """The loss of one discriminator; thanks to instance norm, real and fake images share one batch."""
    real_logits, fake_logits = split(discriminator(torch.cat([real, fake.detach()])), [len(real), len(fake)])
    losses = {f"discriminator_{domain}": loss.discriminator(real_logits, fake_logits)}
    if loss.penalty_weight:
        lazy = getattr(loss, "lazy", 1)
        # Zero in between, so that the mean over the steps stays the same.
        penalty = gradient_penalty(discriminator, real, fake) if getattr(loss, "step", 0) % lazy == 0 else None
        weighted = real.new_zeros(()) if penalty is None else lazy * loss.penalty_weight * penalty
        losses[f"gradient_penalty_{domain}"] = weighted
    return losses


def at_step(objective: Objective, step: int) -> None:
    """Set the step of a lazy adversarial loss, see `WGANGP`."""
    loss = getattr(objective, "adversarial", None)
    if loss is not None and hasattr(loss, "lazy"):
        loss.step = step


def structure_terms(structure: Mapping[str, StructureLoss], view: View) -> Losses:
    """The weighted structure losses by name: "mind_ab" for the translation of a into b."""
    direction = "ab" if view.domain == "b" else "ba"
    return {f"{name}_{direction}": loss.weight * loss(view) for name, loss in structure.items()}


def connect_heads(
    networks: nn.ModuleDict, structure: Mapping[str, StructureLoss], directions: Mapping[str, str], example: Images
) -> tuple[str, ...]:
    """Add the projection heads that a PatchNCE loss learns to `networks`, and give their names.

    Args:
        directions: name of a generator -> the domain that it translates into.
        example: an image of each domain, (1, C, *spatial).
    """
    names = []
    for loss in structure.values():
        if isinstance(loss, PatchNCE):
            for generator, domain in directions.items():
                names.append(f"heads_{generator.removeprefix('gen_')}")
                source = "a" if domain == "b" else "b"
                networks[names[-1]] = loss.connect(networks[generator], domain, example[source])
    return tuple(names)
