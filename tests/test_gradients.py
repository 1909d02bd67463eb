"""The gradients of a step, direction by direction, are those of one graph; and weights keep their own moments."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from medcyclegan.networks.discriminators.patchgan import PatchGAN
from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.training.gradients import RoleGradients
from medcyclegan.training.objectives.cyclegan import CycleGAN
from medcyclegan.training.schedules import Schedule
from medcyclegan.training.trainer import TranslationTrainer

CPU = torch.device("cpu")


def networks() -> nn.ModuleDict:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {name: ResNetGenerator(filters=4, blocks=1) for name in ("gen_ab", "gen_ba")}
    made |= {name: PatchGAN(filters=4, layers=1) for name in ("disc_a", "disc_b")}
    return nn.ModuleDict(made)


def batch(seed: int = 1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {domain: torch.rand(2, 1, 24, 20, generator=random) * 2 - 1 for domain in ("a", "b")}


def test_directions_one_by_one_add_up_to_the_gradients_of_one_graph() -> None:
    objective = CycleGAN(networks())
    parameters = [p for name in objective.generators for p in objective.networks[name].parameters()]
    losses = {name: loss for d in ("ab", "ba") for name, loss in objective.generator_losses(batch(), d)[0].items()}
    torch.stack(list(losses.values())).sum().backward()
    expected = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    gradients = RoleGradients(objective, "generators", CPU)
    for share in (0.25, 0.75):
        found, made = gradients.add(batch(), {}, share)
    assert {"fake_a", "fake_b"} <= set(made) and not any(image.requires_grad for image in made.values())
    for name, loss in losses.items():
        torch.testing.assert_close(found[name], loss.detach(), rtol=1e-6, atol=1e-7)
    for parameter, other in zip(parameters, expected, strict=True):
        assert parameter.grad is not None and other is not None
        assert float((parameter.grad - other).norm() / other.norm()) < 1e-5


def test_a_snapshot_in_another_memory_format_goes_on_with_the_same_numbers() -> None:
    """Fused Adam would otherwise give moments to other weights, silently."""

    def trainer() -> TranslationTrainer:
        return TranslationTrainer(
            device=CPU, objective=CycleGAN(networks(), pool_size=2), loader=[], schedule=Schedule(steps=9)
        )

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
