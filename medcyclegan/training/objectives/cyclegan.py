"""CycleGAN: Zhu et al., Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, ICCV 2017."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcyclegan.losses.adversarial import LSGAN
from medcyclegan.registry import OBJECTIVES
from medcyclegan.training.objectives import Images, Losses
from medcyclegan.training.pool import ImagePool


@OBJECTIVES.register(
    "cyclegan",
    paper="Zhu et al. 2017, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, ICCV",
)
class CycleGAN:
    """Adversarial (LSGAN), cycle-consistency and identity losses between two unpaired domains.

    L = L_GAN(gen_ab, disc_b) + L_GAN(gen_ba, disc_a) + cycle_weight (|gen_ba(gen_ab(a)) - a| + |gen_ab(gen_ba(b)) - b|)
      + identity_weight cycle_weight (|gen_ab(b) - b| + |gen_ba(a) - a|)

    (the paper's equation 3 and, for the identity term, section 5.2; |.| is the mean absolute difference). Instance norm
    treats every image of a batch alone, so running fakes and identities through a generator together changes nothing
    but the speed.

    Args:
        networks: `gen_ab`, `gen_ba`, `disc_a`, `disc_b`; `disc_b` judges whether an image belongs to B.
        cycle_weight: weight of the cycle-consistency loss.
        identity_weight: weight of the identity loss as a multiple of `cycle_weight`; 0 leaves it out.
        pool_size: past fakes from which the discriminators are fed.
        seed: of the pools' random numbers.
    """

    generators = ("gen_ab", "gen_ba")
    discriminators = ("disc_a", "disc_b")

    def __init__(
        self,
        networks: nn.ModuleDict,
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
        pool_size: int = 50,
        seed: int = 0,
    ) -> None:
        if cycle_weight < 0 or identity_weight < 0:
            raise ValueError(f"weights are at least 0, got cycle {cycle_weight}, identity {identity_weight}")
        self.networks = networks
        self.cycle_weight = cycle_weight
        self.identity_weight = identity_weight
        self.adversarial = LSGAN()
        self.pools = {"a": ImagePool(pool_size, seed), "b": ImagePool(pool_size, seed + 1)}

    def generator_losses(self, real: Images) -> tuple[Losses, Images]:
        a, b = real["a"], real["b"]
        gen_ab, gen_ba = self.networks["gen_ab"], self.networks["gen_ba"]
        losses: Losses = {}
        if self.identity_weight > 0:
            fake_b, same_b = gen_ab(torch.cat([a, b])).split([len(a), len(b)])
            fake_a, same_a = gen_ba(torch.cat([b, a])).split([len(b), len(a)])
            weight = self.identity_weight * self.cycle_weight
            losses["identity_a"] = weight * F.l1_loss(same_a, a)
            losses["identity_b"] = weight * F.l1_loss(same_b, b)
        else:
            fake_b, fake_a = gen_ab(a), gen_ba(b)
        cycle_a, cycle_b = gen_ba(fake_b), gen_ab(fake_a)
        losses["cycle_a"] = self.cycle_weight * F.l1_loss(cycle_a, a)
        losses["cycle_b"] = self.cycle_weight * F.l1_loss(cycle_b, b)
        losses["adversarial_ab"] = self.adversarial.generator(self.networks["disc_b"](fake_b))
        losses["adversarial_ba"] = self.adversarial.generator(self.networks["disc_a"](fake_a))
        return losses, {"fake_b": fake_b, "fake_a": fake_a, "cycle_a": cycle_a, "cycle_b": cycle_b}

    def discriminator_losses(self, real: Images, images: Images) -> Losses:
        return {f"discriminator_{d}": self._judge(d, real[d], images[f"fake_{d}"]) for d in ("a", "b")}

    def _judge(self, domain: str, real: Tensor, fake: Tensor) -> Tensor:
        both = torch.cat([real, self.pools[domain].query(fake)])
        real_logits, fake_logits = self.networks[f"disc_{domain}"](both).split([len(real), len(fake)])
        return self.adversarial.discriminator(real_logits, fake_logits)

    def state_dict(self) -> dict[str, Any]:
        return {"pools": {domain: pool.state_dict() for domain, pool in self.pools.items()}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for domain, pool in self.pools.items():
            pool.load_state_dict(state["pools"][domain], device)
