"""Slice-wise translation: the identity network reconstructs, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_seams import flicker
from torch import Tensor, nn

from medcyclegan.inference import tiles
from medcyclegan.inference.planes import plane_window
from medcyclegan.inference.sliding_window import SlidingWindow, translate_volume


def volume(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    body = np.zeros(shape, bool)
    body[shape[0] // 4 : -shape[0] // 4, 2:-2, 1:-1] = True
    return np.where(body, random.uniform(-1, 1, shape), -1).astype(np.float32), body


def translate(network: nn.Module, image: np.ndarray, body: np.ndarray, window: SlidingWindow) -> np.ndarray:
    return translate_volume(network, image[None], body, window)[0]


@pytest.mark.parametrize("window", [(16, 16), (32, 48), (64, 64)])
@pytest.mark.parametrize("shape", [(40, 37, 9), (21, 50, 4), (64, 64, 1 + 2)])
def test_identity_network_reconstructs_exactly(shape: tuple[int, int, int], window: tuple[int, int]) -> None:
    image, body = volume(shape)
    assert np.array_equal(translate(nn.Identity(), image, body, SlidingWindow(window)), image)


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
    translate(near, image, body, SlidingWindow((48, 48)))
    translate(far, wide[0], wide[1].astype(bool), SlidingWindow((48, 48)))
    for a, b in zip(near.shown, far.shown, strict=True):
        assert a.shape == b.shape == (a.shape[0], 1, 48, 48)
        # The same values, whatever their places: as much body and as much background.
        assert torch.equal(*(shown.flatten(1).sort().values for shown in (a, b)))
        assert len(torch.unique(a)) > 2


def test_slices_without_body_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.BATCH_VOXELS, "cpu", 3 * 40 * 40)
    image, body = volume((40, 40, 9))
    network = Recorder()
    translate(network, image, body, SlidingWindow((16, 16)))
    assert sum(len(batch) for batch in network.shown) == 7
    assert max(len(batch) for batch in network.shown) > 1
    empty = translate(network, image, np.zeros_like(body), SlidingWindow((16, 16)))
    assert (empty == -1).all()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("neighbors", [0, 1, 2])
def test_identity_reconstructs_along_every_plane_and_from_stacks(plane: str, neighbors: int) -> None:
    """Slices with body come back whole, with what lies around it; slices without body are background."""
    _, body = volume((30, 26, 22))
    image = np.random.default_rng(1).uniform(-0.9, 0.9, body.shape).astype(np.float32)
    result = translate(nn.Identity(), image, body, SlidingWindow((32, 32), plane=plane, neighbors=neighbors))
    within = tuple(axis for axis in range(3) if axis != {"sagittal": 0, "coronal": 1, "axial": 2}[plane])
    shown = body.any(axis=within, keepdims=True)
    assert not shown.all()
    np.testing.assert_allclose(result, np.where(shown, image, -1), rtol=0, atol=1e-6)


class Marker(nn.Module):
    """Gives the index of each voxel along the second axis of its slice, scaled."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[3], dtype=torch.float32).expand_as(x) / 100


@pytest.mark.parametrize(("plane", "axis"), [("axial", 1), ("coronal", 2), ("sagittal", 2)])
def test_the_axes_of_a_slice_keep_their_order(plane: str, axis: int) -> None:
    image, body = volume((32, 32, 32))
    result = translate(Marker(), image, body, SlidingWindow((32, 32), plane=plane))
    shown = np.flatnonzero(body.any(axis=tuple(i for i in range(3) if i != {"axial": 2, "coronal": 1}.get(plane, 0))))
    expected = np.moveaxis(np.broadcast_to(np.arange(32) / 100, (32, 32, 32)), 2, axis)
    index = [slice(None)] * 3
    index[{"axial": 2, "coronal": 1, "sagittal": 0}[plane]] = shown
    np.testing.assert_allclose(result[tuple(index)], expected[tuple(index)], atol=1e-6)


class NeighborNumbers(nn.Module):
    """Channel c of every stack is c."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[1], dtype=torch.float32)[None, :, None, None].expand_as(x)


def test_a_stack_of_slices_gives_the_mean_of_its_predictions() -> None:
    image = np.zeros((16, 16, 5), np.float32)
    body = np.ones(image.shape, bool)
    result = translate(NeighborNumbers(), image, body, SlidingWindow((16, 16), neighbors=1))
    # The first slice is the middle one (1) of its own stack and the lower one (0) of its neighbor's, and so on.
    assert result[0, 0].tolist() == [0.5, 1, 1, 1, 1.5]


def test_stacks_beyond_the_ends_are_background() -> None:
    network = Recorder()
    image = np.full((16, 16, 3), 0.5, np.float32)
    translate(network, image, np.ones(image.shape, bool), SlidingWindow((16, 16), neighbors=1))
    (shown,) = network.shown
    assert (shown[0, 0] == -1).all() and (shown[2, 2] == -1).all() and (shown[1] == 0.5).all()


@pytest.mark.parametrize("window", [(16, 16, 16), (32, 24, 16), (64, 64, 64)])
def test_identity_reconstructs_through_3d_patches(window: tuple[int, int, int]) -> None:
    image, body = volume((40, 37, 19))
    result = translate(nn.Identity(), image, body, SlidingWindow(window))
    assert np.abs(result - image).max() < 1e-6
    network = Recorder()
    translate(network, image, body, SlidingWindow(window))
    assert all(shown.shape[2:] == window for shown in network.shown)
    assert min(float(shown.min()) for shown in network.shown) == -1  # and no 0, which the image does not hold
    assert not any((shown == 0).any() for shown in network.shown)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("statistics", ["neighbors", "volume"])
def test_pooled_statistics_make_slices_of_the_same_tissue_alike(statistics: str, spatial_dims: int) -> None:
    """One tissue beside one other that comes and goes: its brightness must not follow what else is in the slice."""
    norm = nn.InstanceNorm2d(1) if spatial_dims == 2 else nn.InstanceNorm3d(1)
    network = nn.Sequential(norm, nn.Tanh())
    image = np.full((32, 32, 24), -1, np.float32)
    image[8:24, 8:24] = 0.2
    image[12:16, 12:16, ::2] = 0.9
    body, window = image > -1, (32, 32) if spatial_dims == 2 else (16, 16, 16)
    jumps = {}
    tissue = body & (image < 0.5)
    for kind in ("window", statistics):
        result = translate(network, image, body, SlidingWindow(window, norm_statistics=kind))
        jumps[kind] = flicker(result, tissue)
    assert jumps[statistics] < (0.1 * jumps["window"] if spatial_dims == 2 else 1e-4), jumps


def test_frozen_windows_show_the_body_alone() -> None:
    sizes: list[tuple[int, ...]] = []

    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(tuple(x.shape[2:]))
            return self.norm(x)

    image, body = np.full((128, 128, 4), -1, np.float32), np.zeros((128, 128, 4), bool)
    body[60:80, 50:90] = True
    image[body] = 0.3
    result = translate(Sizes(), image, body, SlidingWindow((128, 128), norm_statistics="neighbors"))
    assert sizes == [(128, 128), (64, 80)]  # 20 and 40 voxels with 16 on either side, in steps of 16
    own = translate(Sizes(), image, body, SlidingWindow((128, 128)))
    assert np.allclose(result[body], own[body], atol=1e-4)


def test_stacks_with_frozen_statistics_average_what_was_predicted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shoulders below a neck: the stack of the neck's slice shows less than the shoulders in the slice beside it."""
    monkeypatch.setitem(tiles.BATCH_VOXELS, "cpu", 1)  # every slice is a batch, with a frame of its own

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(self.norm(x)) + 0.5

    body = np.zeros((128, 128, 4), bool)
    body[10:118, 40:80, :2] = body[60:70, 55:65, 2:] = True
    image = np.where(body, 0.2, -1).astype(np.float32)
    window = SlidingWindow((128, 128), neighbors=1, norm_statistics="volume")
    result = translate(Constant(), image, body, window)
    assert (result[body] == 0.5).all() and set(np.unique(result)) == {-1, 0.5}


def test_windows_of_other_planes() -> None:
    assert plane_window((96, 112), "axial", "axial") == (96, 112)
    assert plane_window((96, 112), "axial", "coronal") == (96, 112)  # x keeps 96; z was never seen
    assert plane_window((96, 112), "axial", "sagittal") == (112, 112)
    assert plane_window((64, 80), "sagittal", "axial") == (80, 64)
