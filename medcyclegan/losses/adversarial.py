"""Adversarial losses, written from their formulas.

*Logits* are a discriminator's raw outputs, (B, 1, *patches), any real number. Every loss is a mean over them, computed
in float32 whatever the precision of the networks.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AdversarialLoss(Protocol):
    """What the generator and the discriminator minimize."""

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Small when the discriminator takes the fakes for real. Scalar."""
        ...

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Small when real and fake are told apart. Scalar."""
        ...


class LSGAN:
    """Least squares with targets 1 (real) and 0 (fake): Mao et al. 2017, equation 9; CycleGAN section 4.

    Generator: mean (D(fake) - 1)^2. Discriminator: (mean (D(real) - 1)^2 + mean D(fake)^2) / 2, where the half slows
    the discriminator relative to the generator as in the CycleGAN paper's section 4.
    """

    def generator(self, fake_logits: Tensor) -> Tensor:
        return (fake_logits.float() - 1).square().mean()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return 0.5 * ((real_logits.float() - 1).square().mean() + fake_logits.float().square().mean())
