"""Adversarial losses against numbers worked by hand, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from medcyclegan.losses.adversarial import BCE, LSGAN, WGANGP, AdversarialLoss, Hinge, gradient_penalty, split

REAL, FAKE = (2.0, 0.5), (-3.0, 1.0)


def logits(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, 1, len(values), 1)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


EXPECTED = [
    (LSGAN(), (16 + 0) / 2, ((1 + 0.25) / 2 + (9 + 1) / 2) / 2),
    (
        BCE(),
        (softplus(3) + softplus(-1)) / 2,
        ((softplus(-2) + softplus(-0.5)) / 2 + (softplus(-3) + softplus(1)) / 2) / 2,
    ),
    (Hinge(), (3 - 1) / 2, (0 + 0.5) / 2 + (0 + 2) / 2),
    (WGANGP(), (3 - 1) / 2, (-3 + 1) / 2 - (2 + 0.5) / 2),
]


@pytest.mark.parametrize(("loss", "generator", "discriminator"), EXPECTED, ids=lambda x: type(x).__name__)
def test_values_equal_the_formula(loss: AdversarialLoss, generator: float, discriminator: float) -> None:
    assert loss.generator(logits(*FAKE)).item() == pytest.approx(generator, abs=1e-6)
    assert loss.discriminator(logits(*REAL), logits(*FAKE)).item() == pytest.approx(discriminator, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "gradient"), [(LSGAN(), -8.0), (BCE(), -1 / (1 + math.exp(-3))), (Hinge(), -1.0), (WGANGP(), -1.0)]
)
def test_a_generator_that_is_seen_through_still_learns(loss: AdversarialLoss, gradient: float) -> None:
    """At D = -3 the hinge loss's gradient is -1; a tanh before it would leave -0.0099."""
    at = torch.tensor([[[[-3.0]]]], requires_grad=True)
    loss.generator(at).backward()
    assert at.grad is not None
    assert at.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_hinge_leaves_alone_what_is_beyond_the_margin() -> None:
    real, fake = (logits(*values).requires_grad_(True) for values in ((2.0, 0.5), (-3.0, -0.5)))
    Hinge().discriminator(real, fake).backward()
    assert real.grad is not None and fake.grad is not None
    assert real.grad.flatten().tolist() == [0, -0.5] and fake.grad.flatten().tolist() == [0, 0.5]


class Linear(nn.Module):
    """D(x) = sum of w x: the gradient is w everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum(dim=(1, 2, 3)).reshape(-1, 1, 1, 1)


def test_penalty_of_a_linear_critic_is_its_slope() -> None:
    critic = Linear(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))  # |grad| = 5
    penalty = gradient_penalty(critic, torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2))
    assert penalty.item() == pytest.approx(16.0, abs=1e-5)
    penalty.backward()
    # d (|w| - 1)^2 / dw = 2 (|w| - 1) w / |w| = 8 w / 5
    assert critic.weight.grad is not None
    torch.testing.assert_close(critic.weight.grad, torch.tensor([[4.8, 0.0], [0.0, 6.4]]))


def test_penalty_stands_on_the_mean_of_the_patches() -> None:
    """A critic with n equal patches has the slope of one, not n times it."""
    one = Linear(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))

    class Patches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return one(x).expand(-1, 1, 5, 5)

    images = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    assert gradient_penalty(Patches(), *images).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("loss", [row[0] for row in EXPECTED], ids=lambda x: type(x).__name__)
def test_scales_count_the_same_whatever_their_size(loss: AdversarialLoss) -> None:
    coarse, fine = logits(-1.0), logits(3.0, 3.0, 3.0)
    both = (loss.generator(coarse) + loss.generator(fine)) / 2
    assert loss.generator((coarse, fine)).item() == pytest.approx(both.item(), abs=1e-6)


def test_joint_logits_are_taken_apart_in_order() -> None:
    first, second = split((torch.arange(3.0), torch.arange(3.0) + 10), [1, 2])
    assert [x.tolist() for x in first] == [[0], [10]] and [x.tolist() for x in second] == [[1, 2], [11, 12]]


@pytest.mark.parametrize("loss", [row[0] for row in EXPECTED], ids=lambda x: type(x).__name__)
def test_half_precision_logits_are_averaged_in_float32(loss: AdversarialLoss) -> None:
    many = torch.full((1, 1, 300, 300), 0.1, dtype=torch.bfloat16)
    exact = loss.generator(many.double().float()).item()
    assert loss.generator(many).item() == pytest.approx(exact, abs=1e-6)
    assert loss.generator(many).dtype == torch.float32


def test_a_penalty_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        WGANGP(penalty_weight=0)
