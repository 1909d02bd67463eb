"""Buffers that a forward pass writes, above all the running statistics of batch norms, through training and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from test_gradients import CPU, batch
from test_training import StopAt, differences
from torch import Tensor, nn

from medcyclegan import config, factory, ranks
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.networks.discriminators.patchgan import PatchGAN
from medcyclegan.training.checkpoint import load_checkpoint
from medcyclegan.training.objectives.cyclegan import CycleGAN
from medcyclegan.training.schedules import Schedule
from medcyclegan.training.trainer import ExponentialMovingAverage, TranslationTrainer

BATCH_NORM = {"_target_": "monai.networks.nets.AttentionUnet", "channels": [4, 8], "strides": [2]}


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1), nn.Tanh())


def trainer() -> TranslationTrainer:
    networks: dict[str, nn.Module] = {name: normed() for name in ("gen_ab", "gen_ba")}
    networks |= {name: PatchGAN(filters=4, layers=1) for name in ("disc_a", "disc_b")}
    loader: Any = [batch()]
    return TranslationTrainer(
        device=CPU, objective=CycleGAN(nn.ModuleDict(networks)), loader=loader, schedule=Schedule(steps=10)
    )


def buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_an_average_translates_like_the_network_it_follows(decay: float) -> None:
    network = normed()
    ema = ExponentialMovingAverage({"n": network}, decay)
    shown = torch.linspace(-3, 9, 4 * 16 * 16).view(4, 1, 16, 16)
    for step in range(1, 6):
        network.train()(shown * step)
        ema.update(step)
    # By hand: the mean of the convolution's outputs with PyTorch's momentum of 0.1, from 0.
    running = torch.zeros(2)
    for step in range(1, 6):
        running = 0.9 * running + 0.1 * network[0](shown * step).mean(dim=(0, 2, 3)).detach()
    average = ema.averages["n"]
    torch.testing.assert_close(average[1].running_mean, running)
    assert int(average[1].num_batches_tracked) == 5 and not average.training
    # The weights never changed, so the average is the network.
    assert torch.equal(average(shown), network.eval()(shown))


@pytest.fixture(scope="module")
def batch_normed(prepared: PreparedCohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps whose generators have batch norms."""
    return factory.train(with_norms(prepared), tmp_path_factory.mktemp("norms") / "run", device="cpu").run


def with_norms(prepared: PreparedCohort) -> config.Experiment:
    model = TINY["model"] | {"generator": BATCH_NORM}
    return config.parse({**TINY, "model": model, "data": {"source": str(prepared.folder)}}, "the test")


def test_a_run_keeps_the_statistics_of_its_averages(batch_normed: Path) -> None:
    content = load_checkpoint(batch_normed)
    counted = [key for key in content["ema"]["gen_ab"] if key.endswith("num_batches_tracked")]
    assert counted
    for name in ("gen_ab", "gen_ba"):
        own, followed = content["ema"][name], content["networks"][name]
        for key in own:
            if "running_" in key or key in counted:
                assert torch.equal(own[key], followed[key])
        assert {int(own[key]) for key in counted} == {4 * 2}  # there and back in every step
    network = factory.load_translator(batch_normed, device="cpu").generator
    assert all(int(value) == 8 for key, value in network.named_buffers() if key in counted)


def test_going_on_is_exact_with_batch_norms(batch_normed: Path, prepared: PreparedCohort, tmp_path: Path) -> None:
    factory.train(with_norms(prepared), tmp_path / "run", device="cpu", handlers=[StopAt(2)])
    factory.resume(tmp_path / "run", device="cpu")
    assert differences(load_checkpoint(tmp_path / "run"), load_checkpoint(batch_normed)) == []


def test_a_step_that_is_left_out_leaves_running_statistics_alone() -> None:
    training = trainer()
    networks = training.objective.networks
    training.state.iteration = 1
    training._iteration(training, batch())
    kept, averaged = buffers(networks), buffers(training.ema.averages["gen_ab"])
    assert all(int(value) == 2 for name, value in kept.items() if name.endswith("tracked"))
    poisoned = {domain: images.clone() for domain, images in batch(2).items()}
    poisoned["a"][0, 0, 0, 0] = math.nan
    training._iteration(training, poisoned)
    assert not all(bool(fine) for fine in training.finite.values())
    assert all(torch.equal(value, kept[name]) for name, value in buffers(networks).items())
    assert all(torch.equal(value, averaged[name]) for name, value in buffers(training.ema.averages["gen_ab"]).items())


def test_a_constant_that_is_infinite_stops_nothing() -> None:
    training = trainer()
    network = training.objective.networks["gen_ab"]
    network.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    training.ema = ExponentialMovingAverage({"gen_ab": network}, 0.9)
    training._iteration(training, batch())
    assert int(network[1].num_batches_tracked) == 2


def test_running_statistics_are_means_over_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    training = trainer()
    before = [buffer.clone() for buffer in training.objective.networks.buffers()]
    training.objective.networks["gen_ab"][1].running_mean.fill_(3.0)
    monkeypatch.setattr(ranks, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(ranks, "mean", lambda tensor: (tensor + 5) / 2)  # the other process has 5 everywhere
    training.finite = {"loss": torch.tensor(True)}
    training._settle_buffers(before)
    norm = training.objective.networks["gen_ab"][1]
    assert norm.running_mean.tolist() == [4, 4] and norm.running_var.tolist() == [3, 3]
    assert int(norm.num_batches_tracked) == 0
