"""CycleGAN: Zhu et al., Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, ICCV 2017."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medcyclegan.losses.adversarial import LSGAN, AdversarialLoss
from medcyclegan.losses.reconstruction import L1, ReconstructionLoss
from medcyclegan.losses.structure import StructureLoss, View
from medcyclegan.registry import OBJECTIVES
from medcyclegan.training.objectives import Images, Losses, connect_heads, judge, structure_terms, translate
from medcyclegan.training.pool import ImagePool


@OBJECTIVES.register("cyclegan", paper="Zhu et al. 2017, Unpaired Image-to-Image Translation, arXiv:1703.10593")
class CycleGAN:
    """Adversarial, cycle-consistency, identity and structure losses between two unpaired domains.

    L = L_GAN(gen_ab, disc_b) + L_GAN(gen_ba, disc_a) + cycle_weight (|gen_ba(gen_ab(a)) - a| + |gen_ab(gen_ba(b)) - b|)
      + identity_weight cycle_weight (|gen_ab(b) - b| + |gen_ba(a) - a|) + structure terms

    (the paper's equation 3 and, for the identity term, section 5.2; |.| is the reconstruction loss, by default the mean
    absolute difference). Instance norm treats every image of a batch alone, so running fakes and identities through a
    generator together changes nothing but the speed.

    Args:
        networks: `gen_ab`, `gen_ba`, `disc_a`, `disc_b`; `disc_b` judges whether an image belongs to B.
        adversarial, reconstruction: the losses.
        structure: by name, applied to both directions.
        example: one image of "a" and of "b", (1, C, *spatial); needed where a structure loss learns.
        cycle_weight: weight of the cycle-consistency loss.
        identity_weight: weight of the identity loss as a multiple of `cycle_weight`; 0 leaves it out.
        mask_sparsity: weight of the mean attention mask of generators that have one (`mask_guided`): what the mask
            leaves out is copied from the source, so a sparse mask changes no more than needed.
        mask_agreement: weight of the mean absolute difference between attention mask and body mask.
        pool_size: past fakes from which the discriminators are fed.
        seed: of the pools' random numbers.
    """

    required = ("gen_ab", "gen_ba", "disc_a", "disc_b")
    discriminators = ("disc_a", "disc_b")
    directions = ("ab", "ba")
    paired = False

    def __init__(
        self,
        networks: nn.ModuleDict,
        adversarial: AdversarialLoss | None = None,
        reconstruction: ReconstructionLoss | None = None,
        structure: Mapping[str, StructureLoss] | None = None,
        example: Images | None = None,
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
        mask_sparsity: float = 0.0,
        mask_agreement: float = 0.0,
        pool_size: int = 50,
        seed: int = 0,
    ) -> None:
        weights = (cycle_weight, identity_weight, mask_sparsity, mask_agreement)
        if min(weights) < 0:
            raise ValueError(f"weights are at least 0, got {weights} for cycle, identity, sparsity and agreement")
        self.networks = networks
        self.cycle_weight = cycle_weight
        self.identity_weight = identity_weight
        self.mask_sparsity = mask_sparsity
        self.mask_agreement = mask_agreement
        self.adversarial = adversarial or LSGAN()
        self.reconstruction = reconstruction or L1()
        self.structure = dict(structure or {})
        if example and identity_weight and example["a"].shape[1] != example["b"].shape[1]:
            warnings.warn(
                f"the identity loss is left out: a has {example['a'].shape[1]} channels and b {example['b'].shape[1]}",
                stacklevel=2,
            )
            self.identity_weight = 0.0
        heads = connect_heads(networks, self.structure, {"gen_ab": "b", "gen_ba": "a"}, example or {})
        self.generators = ("gen_ab", "gen_ba", *heads)
        self.pools = {"a": ImagePool(pool_size, seed), "b": ImagePool(pool_size, seed + 1)}

    def generator_losses(self, batch: Images, direction: str) -> tuple[Losses, Images]:
        """There and back."""
        source, target = direction[0], direction[1]
        real, goal, body = batch[source], batch[target], batch.get(f"body_{source}")
        there, back = self.networks[f"gen_{source}{target}"], self.networks[f"gen_{target}{source}"]
        losses: Losses = {}
        if self.identity_weight > 0:
            both, mask = translate(there, torch.cat([real, goal]))
            fake, same = both.split([len(real), len(goal)])
            weight = self.identity_weight * self.cycle_weight
            losses[f"identity_{target}"] = weight * self.reconstruction(same, goal)
        else:
            fake, mask = translate(there, real)
        cycle = back(fake)
        losses[f"cycle_{source}"] = self.cycle_weight * self.reconstruction(cycle, real)
        losses[f"adversarial_{direction}"] = self.adversarial.generator(self.networks[f"disc_{target}"](fake))
        if self.structure:
            view = View(real, fake, cycle, batch[f"body_{source}"], target, there)
            losses |= structure_terms(self.structure, view)
        if mask is not None:
            mask = mask[: len(real)]  # without the identity half
            if self.mask_sparsity:
                losses[f"mask_sparsity_{direction}"] = self.mask_sparsity * mask.mean()
            if self.mask_agreement and body is not None:
                difference = (mask - body.any(dim=1, keepdim=True).to(mask.dtype)).abs().mean()
                losses[f"mask_agreement_{direction}"] = self.mask_agreement * difference
        return losses, {f"fake_{target}": fake, f"cycle_{source}": cycle}

    def discriminator_losses(self, batch: Images, images: Images, direction: str) -> Losses:
        domain = direction[1]
        fakes = self.pools[domain].query(images[f"fake_{domain}"])
        return judge(self.networks[f"disc_{domain}"], self.adversarial, batch[domain], fakes, domain)

    def state_dict(self) -> dict[str, Any]:
        return {"pools": {domain: pool.state_dict() for domain, pool in self.pools.items()}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for domain, pool in self.pools.items():
            pool.load_state_dict(state["pools"][domain], device)
