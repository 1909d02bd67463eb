"""Lanes: the two directions side by side give what they give one after the other, and what one graph gives."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from medcyclegan.networks.cpu import accelerate
from medcyclegan.networks.discriminators.patchgan import PatchGAN
from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.training.lanes import Lanes
from medcyclegan.training.objectives import Losses, parts_of
from medcyclegan.training.objectives.cyclegan import CycleGAN
from medcyclegan.training.trainer import TranslationTrainer

CPU = torch.device("cpu")


@contextmanager
def cores(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def networks(dropout: float = 0.0) -> nn.ModuleDict:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        name: ResNetGenerator(filters=4, blocks=1, dropout=dropout) for name in ("gen_ab", "gen_ba")
    }
    made |= {name: PatchGAN(filters=4, layers=1) for name in ("disc_a", "disc_b")}
    return nn.ModuleDict(made)


def batch(seed: int = 1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {domain: torch.rand(2, 1, 24, 20, generator=random) * 2 - 1 for domain in ("a", "b")}


def gradients(count: int, dropout: float = 0.0, repeat: int = 2) -> tuple[Losses, list[Tensor], Lanes]:
    with cores(count):
        objective = CycleGAN(networks(dropout))
        parameters = [p for name in objective.generators for p in objective.networks[name].parameters()]
        lanes = Lanes(CPU)
        for _ in range(repeat):  # the second time side by side
            for parameter in parameters:
                parameter.grad = None
            losses, _ = lanes.differentiate(parts_of(objective, "generators", batch(), {}), parameters)
        lanes.close()
    return losses, [p.grad for p in parameters if p.grad is not None], lanes


def test_lanes_give_the_gradients_of_one_graph() -> None:
    objective = CycleGAN(networks())
    losses = {name: loss for d in ("ab", "ba") for name, loss in objective.generator_losses(batch(), d)[0].items()}
    torch.stack(list(losses.values())).sum().backward()
    expected = [p.grad for name in objective.generators for p in objective.networks[name].parameters()]
    for count in (1, 2):
        found_losses, found, lanes = gradients(count)
        assert lanes.together is (count == 2) and len(found) == len(expected)
        for name, loss in losses.items():
            torch.testing.assert_close(found_losses[name], loss.detach(), rtol=1e-6, atol=1e-7)
        for one, other in zip(found, expected, strict=True):
            assert other is not None
            assert float((one - other).norm() / other.norm()) < 1e-5


def test_in_turn_and_side_by_side_are_the_same_bits() -> None:
    _, in_turn, first = gradients(2, repeat=1)
    _, together, second = gradients(2, repeat=3)
    assert first.together and second.together
    assert all(torch.equal(one, other) for one, other in zip(in_turn, together, strict=True))


def test_parts_that_draw_random_numbers_stay_in_turn_and_repeat() -> None:
    def drawn() -> list[Tensor]:
        torch.manual_seed(5)
        _, found, lanes = gradients(2, dropout=0.5, repeat=3)
        assert lanes.together is False
        return found

    assert all(torch.equal(one, other) for one, other in zip(drawn(), drawn(), strict=True))


def test_random_numbers_that_come_late_are_told() -> None:
    weight = nn.Parameter(torch.ones(3))
    with cores(2):
        lanes = Lanes(CPU)
    quiet = [lambda: ({"x": weight.sum()}, {}), lambda: ({"y": weight.square().sum()}, {})]
    lanes.differentiate(quiet, [weight])
    assert lanes.together and torch.equal(weight.grad, torch.full((3,), 3.0))  # d(w + w^2)/dw at 1
    with pytest.warns(UserWarning, match="one after the other"):
        lanes.differentiate([quiet[0], lambda: ({"y": (weight * torch.rand(3)).sum()}, {})], [weight])
    assert lanes.together is False
    lanes.close()


def test_gradients_accumulate_with_their_share_and_lie_as_their_weights() -> None:
    conv = nn.Conv2d(2, 3, 3)
    accelerate(conv)
    weight = conv.weight
    lanes = Lanes(CPU)
    lanes.cores = 2
    parts = [lambda: ({"x": 2 * weight.sum()}, {}), lambda: ({"y": 4 * weight.contiguous().sum()}, {})]
    for _ in range(2):
        lanes.differentiate(parts, [weight, conv.bias], share=0.5)
    assert torch.equal(weight.grad, torch.full_like(weight, 6.0)) and weight.grad.stride() == weight.stride()
    assert conv.bias.grad is None
    lanes.close()


def test_a_failing_part_is_an_error_and_the_lanes_go_on() -> None:
    weight = nn.Parameter(torch.ones(1))
    lanes = Lanes(CPU)
    lanes.cores = 2

    def broken() -> tuple[Losses, Losses]:
        raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            lanes.differentiate([lambda: ({"x": weight.sum()}, {}), broken], [weight])
        lanes.together = True
    lanes.close()


def test_lanes_run_at_the_same_time() -> None:
    weight = nn.Parameter(torch.ones(1))
    lanes = Lanes(CPU)
    lanes.cores, lanes.together = 2, True

    meeting = threading.Barrier(2)

    def waits_for_the_other() -> tuple[Losses, Losses]:
        meeting.wait(timeout=60)  # one after the other, the first would wait in vain: BrokenBarrierError
        return {"x": weight.sum()}, {}

    lanes.differentiate([waits_for_the_other, waits_for_the_other], [weight])
    lanes.close()


def test_the_trainer_gives_the_same_bits_again() -> None:
    def weights() -> list[Tensor]:
        with cores(2):
            trainer = TranslationTrainer(device=CPU, objective=CycleGAN(networks(), pool_size=2), loader=[], steps=9)
            for step in range(3):
                trainer._iteration(trainer, batch(step))
            assert trainer.lanes.together
            trainer.lanes.close()
        return [p.detach() for p in trainer.objective.networks.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(weights(), weights(), strict=True))


def test_a_snapshot_in_another_memory_format_goes_on_with_the_same_numbers() -> None:
    """Fused Adam would otherwise give moments to other weights, silently."""

    def trainer() -> TranslationTrainer:
        return TranslationTrainer(device=CPU, objective=CycleGAN(networks(), pool_size=2), loader=[], steps=9)

    first = trainer()
    first._iteration(first, batch(0))
    snapshot = copy.deepcopy(first.snapshot())
    for states in snapshot["optimizers"].values():
        for moments in states["state"].values():
            for name, moment in moments.items():
                moments[name] = moment.clone(memory_format=torch.contiguous_format)
    second = trainer()
    second.restore(snapshot)
    for one in (first, second):
        one._iteration(one, batch(1))
    pairs = zip(first.objective.networks.parameters(), second.objective.networks.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
