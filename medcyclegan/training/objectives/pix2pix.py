"""Pix2Pix: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medcyclegan.losses.adversarial import BCE, AdversarialLoss
from medcyclegan.losses.reconstruction import L1, ReconstructionLoss
from medcyclegan.losses.structure import StructureLoss, View
from medcyclegan.registry import OBJECTIVES
from medcyclegan.training.objectives import Images, Losses, connect_heads, judge, structure_terms, translate


@OBJECTIVES.register("pix2pix", paper="Isola et al. 2017, Conditional Adversarial Networks, arXiv:1611.07004")
class Pix2Pix:
    """Adversarial and reconstruction loss for paired data: "a" and "b" show the same patient at the same place.

    L = L_cGAN(gen_ab, disc_b) + reconstruction_weight |gen_ab(a) - b|

    (the paper's equation 4). The discriminator is conditional: it sees the source along with the image, as channels.

    Args:
        networks: `gen_ab` and `disc_b`, which takes the channels of both domains.
        adversarial, reconstruction: the losses.
        structure: by name.
        example: one image of "a" and of "b", (1, C, *spatial); needed where a structure loss learns.
        reconstruction_weight: 100 in the paper.
    """

    required = ("gen_ab", "disc_b")
    discriminators = ("disc_b",)
    directions = ("ab",)
    paired = True

    def __init__(
        self,
        networks: nn.ModuleDict,
        adversarial: AdversarialLoss | None = None,
        reconstruction: ReconstructionLoss | None = None,
        structure: Mapping[str, StructureLoss] | None = None,
        example: Images | None = None,
        reconstruction_weight: float = 100.0,
    ) -> None:
        if reconstruction_weight < 0:
            raise ValueError(f"reconstruction_weight is at least 0, got {reconstruction_weight}")
        self.networks = networks
        self.adversarial = adversarial or BCE()
        self.reconstruction = reconstruction or L1()
        self.structure = dict(structure or {})
        self.reconstruction_weight = reconstruction_weight
        self.generators = ("gen_ab", *connect_heads(networks, self.structure, {"gen_ab": "b"}, example or {}))

    def generator_losses(self, batch: Images, direction: str) -> tuple[Losses, Images]:
        a, b = batch["a"], batch["b"]
        fake_b, _ = translate(self.networks["gen_ab"], a)
        losses = {
            "reconstruction_b": self.reconstruction_weight * self.reconstruction(fake_b, b),
            "adversarial_ab": self.adversarial.generator(self.networks["disc_b"](torch.cat([a, fake_b], dim=1))),
        }
        if self.structure:
            view = View(a, fake_b, None, batch["body_a"], "b", self.networks["gen_ab"])
            losses |= structure_terms(self.structure, view)
        return losses, {"fake_b": fake_b}

    def discriminator_losses(self, batch: Images, images: Images, direction: str) -> Losses:
        real, fake = (torch.cat([batch["a"], b], dim=1) for b in (batch["b"], images["fake_b"]))
        return judge(self.networks["disc_b"], self.adversarial, real, fake, "b")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        pass
