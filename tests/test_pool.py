"""The image pool: hands through until full, then swaps half of the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medcyclegan.networks.discriminators.patchgan import PatchGAN
from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.training.objectives.cut import CUT
from medcyclegan.training.objectives.cyclegan import CycleGAN
from medcyclegan.training.pool import ImagePool


def numbered(value: float) -> torch.Tensor:
    return torch.full((1, 1, 2, 2), float(value), requires_grad=True) * 1


def test_fills_first_and_detaches() -> None:
    pool = ImagePool(size=3)
    for i in range(3):
        out = pool.query(numbered(i))
        assert torch.equal(out, numbered(i)) and not out.requires_grad
    assert len(pool.images) == 3


def test_swaps_about_half_and_returns_what_it_held() -> None:
    pool = ImagePool(size=5, seed=1)
    seen, old = set(), 0
    for i in range(2000):
        value = float(pool.query(numbered(i)).mean())
        if value >= 5:  # the first five were handed through while the pool filled, and are stored too
            assert value not in seen, "an image is given out once only"
            seen.add(value)
        old += value != i
    assert 0.46 < old / 1995 < 0.54


def test_every_place_of_the_pool_is_swapped() -> None:
    pool, drawn = ImagePool(size=4, seed=3), torch.Generator().manual_seed(3)
    held = [0.0, 1.0, 2.0, 3.0]
    for i in range(4):
        pool.query(numbered(i))
    for i in range(4, 200):
        expected = float(i)
        if torch.rand((), generator=drawn) < 0.5:
            place = int(torch.randint(4, (), generator=drawn))
            expected, held[place] = held[place], expected
        assert float(pool.query(numbered(i)).mean()) == expected
    assert [float(image.mean()) for image in pool.images] == held
    assert min(held) >= 150, "what came first has left, from every place"


def test_the_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    pool = ImagePool(size=2, seed=5)
    for i in range(20):
        pool.query(numbered(i))
    torch.save(pool.state_dict(), tmp_path / "pool.pt")
    other = ImagePool(size=2, seed=5)
    assert not torch.equal(other.random.get_state(), pool.random.get_state())
    other.load_state_dict(torch.load(tmp_path / "pool.pt", weights_only=True), torch.device("cpu"))
    assert torch.equal(other.random.get_state(), pool.random.get_state())
    answers = [[float(p.query(numbered(i)).mean()) for i in range(20, 60)] for p in (pool, other)]
    assert answers[0] == answers[1] and answers[0] != list(range(20, 60))
    with pytest.raises(ValueError, match="several shapes"):
        other.load_state_dict(
            pool.state_dict() | {"images": [torch.zeros(1, 2), torch.zeros(1, 3)]}, torch.device("cpu")
        )


@pytest.mark.parametrize("kind", [CycleGAN, CUT])
def test_an_objective_keeps_the_state_of_its_pools(kind: Any) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        networks = {n: ResNetGenerator(filters=4, blocks=1) for n in ("gen_ab", "gen_ba") if n in kind.required}
        networks |= {n: PatchGAN(filters=4, layers=1) for n in ("disc_a", "disc_b") if n in kind.required}
        example = {domain: torch.zeros(1, 1, 32, 32) for domain in ("a", "b")}
        return kind(torch.nn.ModuleDict(networks), pool_size=2, example=example)

    def judged(objective: Any, seed: int) -> dict[str, float]:
        random = torch.Generator().manual_seed(seed)
        names = ("fake_a", "fake_b", "real_a", "real_b")
        images = {name: torch.rand(1, 1, 32, 32, generator=random) for name in names}
        batch = {"a": images["real_a"], "b": images["real_b"]}
        losses = [objective.discriminator_losses(batch, images, direction) for direction in objective.directions]
        return {name: float(loss) for some in losses for name, loss in some.items()}

    objective, other = made(), made()
    for seed in range(4):
        judged(objective, seed)
    other.load_state_dict(objective.state_dict(), torch.device("cpu"))
    assert [judged(objective, seed) for seed in range(4, 8)] == [judged(other, seed) for seed in range(4, 8)]
    fresh = made()
    assert [judged(objective, seed) for seed in range(8, 12)] != [judged(fresh, seed) for seed in range(8, 12)]


def test_an_image_that_is_not_finite_is_not_kept() -> None:
    pool = ImagePool(size=3, seed=0)
    assert pool.query(numbered(float("nan"))).isnan().all()
    assert float(pool.images[0].abs().max()) == 0
    pool.query(numbered(1))
    assert pool.query(numbered(float("inf"))).isinf().all()
    assert [float(image.mean()) for image in pool.images] == [0, 1, 1]
    for _ in range(20):
        pool.query(numbered(float("nan")))
    assert all(bool(torch.isfinite(image).all()) for image in pool.images)


def test_size_zero_is_no_pool_and_negative_is_refused() -> None:
    assert torch.equal(ImagePool(size=0).query(numbered(7)), numbered(7))
    with pytest.raises(ValueError, match="at least 0"):
        ImagePool(size=-1)
