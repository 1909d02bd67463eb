"""Adversarial losses, one class each, written from their formulas.

*Logits* are a discriminator's raw outputs, (B, 1, *patches), any real number; a discriminator that judges at several
scales gives a tuple of them, one tensor per scale, and each scale counts the same. Every loss is a mean over the
patches, computed in float32 whatever the precision of the networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcyclegan.registry import ADVERSARIAL_LOSSES

Logits = Tensor | tuple[Tensor, ...]


class AdversarialLoss(Protocol):
    """The adversarial losses of generator and discriminator.

    `penalty_weight` above 0 asks the objective to add that multiple of `gradient_penalty` to the discriminator's loss;
    with `lazy` and `step`, only every `lazy`-th step, and then `lazy` times.
    """

    penalty_weight: float

    def generator(self, fake: Logits) -> Tensor:
        """Small when the discriminator judges the fakes real. Scalar."""
        ...

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        """Small when real and fake are separated. Scalar."""
        ...


@ADVERSARIAL_LOSSES.register("lsgan", paper="Mao et al. 2017, Least Squares Generative Adversarial Networks")
class LSGAN:
    """Least squares with targets 1 (real) and 0 (fake): equation 9 of the paper; CycleGAN section 4.

    Generator: mean (D(fake) - 1)^2. Discriminator: (mean (D(real) - 1)^2 + mean D(fake)^2) / 2, where the half slows
    the discriminator relative to the generator as in the CycleGAN paper's section 4.
    """

    penalty_weight = 0.0

    def generator(self, fake: Logits) -> Tensor:
        return _mean(lambda d: (d - 1).square(), fake)

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return 0.5 * (_mean(lambda d: (d - 1).square(), real) + _mean(torch.square, fake))


@ADVERSARIAL_LOSSES.register("bce", paper="Goodfellow et al. 2014, Generative Adversarial Nets")
class BCE:
    """Binary cross-entropy on logits; the generator's is the non-saturating form of the paper's section 3.

    Generator: mean -log sigmoid(D(fake)).
    Discriminator: (mean -log sigmoid(D(real)) + mean -log(1 - sigmoid(D(fake)))) / 2.
    """

    penalty_weight = 0.0

    def generator(self, fake: Logits) -> Tensor:
        return _mean(lambda d: F.softplus(-d), fake)

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return 0.5 * (_mean(lambda d: F.softplus(-d), real) + _mean(F.softplus, fake))


@ADVERSARIAL_LOSSES.register(
    "hinge", paper="Lim and Ye 2017, Geometric GAN; Miyato et al. 2018, Spectral Normalization"
)
class Hinge:
    """Hinge loss; the logits pass through no activation (Miyato et al., equations 16 and 17).

    Generator: -mean D(fake). Discriminator: mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)).
    """

    penalty_weight = 0.0

    def generator(self, fake: Logits) -> Tensor:
        return _mean(torch.neg, fake)

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return _mean(lambda d: F.relu(1 - d), real) + _mean(lambda d: F.relu(1 + d), fake)


@ADVERSARIAL_LOSSES.register("wgan_gp", paper="Gulrajani et al. 2017, Improved Training of Wasserstein GANs")
class WGANGP:
    """Wasserstein distance with gradient penalty (equation 3 of the paper).

    Generator: -mean D(fake). Discriminator: mean D(fake) - mean D(real) + penalty_weight mean (|grad D| - 1)^2.

    Args:
        penalty_weight: of the gradient penalty; 10 in the paper.
        lazy: steps between two computations of the penalty, which then counts that many times (lazy regularization,
            Karras et al. 2020, StyleGAN2, section 3.1, which takes 16); 1: at every step.

    Attributes:
        step: the present one, as set by the objective (`training.objectives.at_step`).
    """

    def __init__(self, penalty_weight: float = 10.0, lazy: int = 1) -> None:
        if penalty_weight <= 0:
            raise ValueError(f"penalty_weight must be above 0, got {penalty_weight}: without it this is no WGAN-GP")
        if lazy < 1:
            raise ValueError(f"lazy is at least 1 step, got {lazy}")
        self.penalty_weight = penalty_weight
        self.lazy = lazy
        self.step = 0

    def generator(self, fake: Logits) -> Tensor:
        return _mean(torch.neg, fake)

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return _mean(lambda d: d, fake) - _mean(lambda d: d, real)


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """mean (|grad_x D(x)|_2 - 1)^2 at random points between real and fake images (Gulrajani et al. 2017, equation 3).

    D of an image is the mean of its logits, so the penalty does not grow with the number of patches.

    Args:
        discriminator: images to logits.
        real, fake: (B, C, *spatial), equally many.
    """
    share = torch.rand([len(real)] + [1] * (real.dim() - 1), device=real.device)
    with torch.autocast(real.device.type, enabled=False):
        between = torch.lerp(real.float(), fake.detach().float(), share).requires_grad_(True)
        logits = discriminator(between)
        scales = logits if isinstance(logits, tuple) else (logits,)
        score = torch.stack([scale.flatten(1).mean(dim=1).sum() for scale in scales]).mean()
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def split(logits: Logits, sizes: list[int]) -> list[Logits]:
    """Split the logits of a joint batch again, for any number of scales."""
    if isinstance(logits, tuple):
        return list(zip(*(scale.split(sizes) for scale in logits), strict=True))
    return list(logits.split(sizes))


def _mean(formula: Callable[[Tensor], Tensor], logits: Logits) -> Tensor:
    scales = logits if isinstance(logits, tuple) else (logits,)
    exact = torch.promote_types(scales[0].dtype, torch.float32)
    return torch.stack([formula(scale.to(exact)).mean() for scale in scales]).mean()
