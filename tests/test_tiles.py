"""Windows of any size: shown in batches that fit, cut and blended where they do not, surrounded with background."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcyclegan import InputError
from medcyclegan.inference import tiles
from medcyclegan.inference.tiles import WindowRunner
from medcyclegan.networks.generators.resnet import ResNetGenerator

CPU = torch.device("cpu")


class Small(nn.Module):
    """Has room for so many voxels at a time; keeps the sizes that it was shown."""

    def __init__(self, voxels: int) -> None:
        super().__init__()
        self.voxels = voxels
        self.shown: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > self.voxels:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        self.shown.append(tuple(x.shape))
        return x


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered() -> None:
    x = torch.rand(8, 1, 16, 16)
    network = Small(3 * 256)
    runner = WindowRunner(network, device=CPU)
    assert torch.equal(runner(x, list(range(8))), x)
    assert network.shown == [(2, 1, 16, 16)] * 4
    network.shown.clear()
    assert torch.equal(runner(x[:4], [0, 1, 2, 3]), x[:4])
    assert network.shown == [(2, 1, 16, 16)] * 2


def test_statistics_survive_running_out_of_memory() -> None:
    torch.manual_seed(0)
    generator = ResNetGenerator(filters=4, blocks=1).eval()

    class Tight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = generator

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            if len(x) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return y

    x = torch.rand(5, 1, 32, 32) * 2 - 1
    results = []
    with torch.inference_mode():
        for network in (Tight(), generator):
            runner = WindowRunner(network, device=CPU)
            runner.gather(x, [0, 1, 2, 3, 4])
            results.append(runner(x, [0, 1, 2, 3, 4], "neighbors"))
    assert torch.allclose(*results, atol=1e-5)


def test_a_window_that_does_not_fit_is_cut_into_tiles_with_a_warning() -> None:
    x = torch.rand(2, 1, 200, 150)
    network = Small(120 * 120)
    with pytest.warns(UserWarning, match="does not fit"):
        result = WindowRunner(network, device=CPU)(x, [0, 1])
    assert torch.allclose(result, x, atol=1e-6)
    assert all(shape[2:] == (100, 100) for shape in network.shown)


def test_other_errors_are_not_taken_for_a_lack_of_memory_and_a_hopeless_lack_is_told() -> None:
    with pytest.raises(InputError, match="not enough memory"), pytest.warns(UserWarning):
        WindowRunner(Small(10), device=CPU)(torch.rand(1, 1, 200, 150), [0])
    with pytest.raises(RuntimeError, match="channels"):
        WindowRunner(nn.Conv2d(3, 1, 3), device=CPU)(torch.rand(1, 1, 8, 8), [0])


@pytest.mark.parametrize("shape", [(40, 37), (64, 64), (33, 20, 26)])
def test_tiles_of_the_identity_reconstruct(shape: tuple[int, ...]) -> None:
    x = torch.rand(2, 1, *shape) * 2 - 1
    result = WindowRunner(nn.Identity(), device=CPU, tile=(16,) * len(shape))(x, [0, 1])
    assert torch.allclose(result, x, atol=1e-6)


def test_tiles_overlap_by_half_and_are_blended_smoothly() -> None:
    """Tiles whose values differ by one step must not leave that step in the result."""

    class Numbered(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            first = Numbered.calls
            Numbered.calls += len(x)
            return torch.arange(first, first + len(x), dtype=torch.float32)[:, None, None, None].expand_as(x)

    result = WindowRunner(Numbered(), device=CPU, tile=(16, 32))(torch.zeros(1, 1, 64, 32), [0])[0, 0]
    assert Numbered.calls == 7  # 64 voxels in steps of 8
    # Between the tiles' centers 8 voxels apart, with a standard deviation of 2: 1 / (1 + exp(2 p)).
    place = np.arange(-3.5, 4)
    for column in (0, 16):
        np.testing.assert_allclose(result[8:16, column], 1 / (1 + np.exp(-2 * place)), atol=1e-3)


def test_batches_fit_into_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = ResNetGenerator(filters=8, blocks=1).eval()
    monkeypatch.setattr(tiles, "free_memory", lambda device: 2.0e7)
    runner = WindowRunner(generator, device=CPU)
    few = runner.batch_size(64 * 64, 1, 2)
    # The widest layers take and give 2 x 8 channels of float32 at full resolution.
    assert 1 <= few <= 0.7 * 2.0e7 / (5 * 16 * 4 * 64 * 64)
    assert not runner.fits((512, 512), 1) and runner.fits((64, 64), 1)
    monkeypatch.setattr(tiles, "free_memory", lambda device: 1e12)
    assert WindowRunner(generator, device=CPU).batch_size(64 * 64, 1, 2) == 2 * 256 * 256 / 64**2
