"""CUT: Park et al., Contrastive Learning for Unpaired Image-to-Image Translation, ECCV 2020."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medcyclegan.losses.adversarial import LSGAN, AdversarialLoss
from medcyclegan.losses.structure import StructureLoss, View
from medcyclegan.losses.structure.patch_nce import PatchNCE
from medcyclegan.registry import OBJECTIVES
from medcyclegan.training.objectives import Images, Losses, connect_heads, judge, structure_terms, translate
from medcyclegan.training.pool import ImagePool


@OBJECTIVES.register("cut", paper="Park et al. 2020, Contrastive Unpaired Translation, arXiv:2007.15651")
class CUT:
    """One-way unpaired translation: PatchNCE instead of cycle consistency keeps the source's content.

    L = L_GAN(gen_ab, disc_b) + nce_weight PatchNCE(a, gen_ab(a)) + identity_weight PatchNCE(b, gen_ab(b))

    (the paper's equation 5; the last term is its identity regularization). It has one generator and one discriminator
    only, so a step costs about half of CycleGAN's. Its checkpoints translate in the direction ab only.

    Args:
        networks: `gen_ab` and `disc_b`.
        adversarial: the loss.
        structure: other structure losses by name.
        example: one image of "a" and of "b", (1, C, *spatial), to find the sizes of the features.
        nce_weight, identity_weight: 1 and 1 in the paper; 10 and 0 are its FastCUT.
        layers, patches, size, temperature: as in `PatchNCE`.
        pool_size: past fakes from which the discriminator is fed; the paper uses none.
        seed: of the pool's random numbers.
    """

    required = ("gen_ab", "disc_b")
    discriminators = ("disc_b",)
    directions = ("ab",)
    paired = False

    def __init__(
        self,
        networks: nn.ModuleDict,
        example: Images,
        adversarial: AdversarialLoss | None = None,
        structure: Mapping[str, StructureLoss] | None = None,
        nce_weight: float = 1.0,
        identity_weight: float = 1.0,
        layers: int = 4,
        patches: int = 128,
        size: int = 64,
        temperature: float = 0.07,
        pool_size: int = 0,
        seed: int = 0,
    ) -> None:
        if nce_weight <= 0 or identity_weight < 0:
            raise ValueError(
                f"nce_weight is above 0 and identity_weight at least 0, got {nce_weight} and {identity_weight}"
            )
        if any(isinstance(loss, PatchNCE) for loss in (structure or {}).values()):
            raise ValueError("PatchNCE is given twice: cut brings its own")
        self.networks = networks
        self.adversarial = adversarial or LSGAN()
        self.nce = PatchNCE(nce_weight, layers, patches, size, temperature)
        self.identity_weight = identity_weight
        self.structure = dict(structure or {})
        heads = connect_heads(networks, {"patch_nce": self.nce, **self.structure}, {"gen_ab": "b"}, example)
        self.generators = ("gen_ab", *heads)
        self.pool = ImagePool(pool_size, seed)

    def generator_losses(self, batch: Images, direction: str) -> tuple[Losses, Images]:
        a, b, generator = batch["a"], batch["b"], self.networks["gen_ab"]
        identity = self.identity_weight > 0 and a.shape[1] == b.shape[1]
        both, _ = translate(generator, torch.cat([a, b]) if identity else a)
        fake_b = both[: len(a)]
        view = View(a, fake_b, None, batch["body_a"], "b", generator)
        losses = {"adversarial_ab": self.adversarial.generator(self.networks["disc_b"](fake_b))}
        losses |= structure_terms({"patch_nce": self.nce, **self.structure}, view)
        if identity:
            same = View(b, both[len(a) :], None, batch["body_b"], "b", generator)
            losses["identity_b"] = self.identity_weight * self.nce(same)
        return losses, {"fake_b": fake_b}

    def discriminator_losses(self, batch: Images, images: Images, direction: str) -> Losses:
        fake = self.pool.query(images["fake_b"])
        return judge(self.networks["disc_b"], self.adversarial, batch["b"], fake, "b")

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self.pool.state_dict()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.pool.load_state_dict(state["pool"], device)
