"""Adversarial losses against numbers worked by hand."""

from __future__ import annotations

import torch

from medcyclegan.losses.adversarial import LSGAN


def test_lsgan_equals_its_formula() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.5, -1.0])
    # generator: ((0.5 - 1)^2 + (-1 - 1)^2) / 2; discriminator: ((0 + 4) / 2 + (0.25 + 1) / 2) / 2
    assert LSGAN().generator(fake).item() == (0.25 + 4.0) / 2
    assert LSGAN().discriminator(real, fake).item() == (2.0 + 0.625) / 2


def test_lsgan_gradient() -> None:
    logit = torch.tensor([-3.0], requires_grad=True)
    LSGAN().generator(logit).backward()
    assert logit.grad is not None and logit.grad.item() == -8.0


def test_computed_in_float32() -> None:
    loss = LSGAN().generator(torch.tensor([1.0, 1.01], dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
