"""Slice-wise translation: the identity network reconstructs, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcyclegan.inference import tiles
from medcyclegan.inference.planes import translate_slices

CPU = torch.device("cpu")


def volume(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    body = np.zeros(shape, bool)
    body[shape[0] // 4 : -shape[0] // 4, 2:-2, 1:-1] = True
    return np.where(body, random.uniform(-1, 1, shape), -1).astype(np.float32), body


@pytest.mark.parametrize("window", [(16, 16), (32, 48), (64, 64)])
@pytest.mark.parametrize("shape", [(40, 37, 9), (21, 50, 4), (64, 64, 1 + 2)])
def test_identity_network_reconstructs_exactly(shape: tuple[int, int, int], window: tuple[int, int]) -> None:
    image, body = volume(shape)
    assert np.array_equal(translate_slices(nn.Identity(), image, body, window=window, device=CPU), image)


class Recorder(nn.Module):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return x


def test_field_of_view_does_not_change_what_the_network_sees() -> None:
    """The same head in a wider field of view must give the same instance-norm statistics."""
    image, body = volume((40, 40, 6))
    wide = [np.pad(x, [(30, 50), (20, 0), (0, 0)], constant_values=fill) for x, fill in ((image, -1), (body, False))]
    near, far = Recorder(), Recorder()
    translate_slices(near, image, body, window=(48, 48), device=CPU)
    translate_slices(far, wide[0], wide[1].astype(bool), window=(48, 48), device=CPU)
    for a, b in zip(near.shown, far.shown, strict=True):
        assert a.shape == b.shape == (a.shape[0], 1, 48, 48)
        assert torch.equal(a.sort().values.sum(), b.sort().values.sum())


def test_slices_without_body_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.BATCH_VOXELS, "cpu", 3 * 40 * 40)
    image, body = volume((40, 40, 9))
    network = Recorder()
    translate_slices(network, image, body, window=(16, 16), device=CPU)
    assert sum(len(batch) for batch in network.shown) == 7
    assert max(len(batch) for batch in network.shown) > 1
    empty = translate_slices(network, image, np.zeros_like(body), window=(16, 16), device=CPU)
    assert (empty == -1).all()
