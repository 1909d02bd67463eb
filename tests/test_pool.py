"""The image pool: hands through until full, then swaps half of the time."""

from __future__ import annotations

import pytest
import torch

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


def test_state_continues_the_same_sequence() -> None:
    pool, other = ImagePool(size=4, seed=2), ImagePool(size=4, seed=9)
    for i in range(10):
        pool.query(numbered(i))
    other.load_state_dict(pool.state_dict(), torch.device("cpu"))
    for i in range(10, 40):
        assert torch.equal(pool.query(numbered(i)), other.query(numbered(i)))


def test_size_zero_is_no_pool_and_negative_is_refused() -> None:
    assert torch.equal(ImagePool(size=0).query(numbered(7)), numbered(7))
    with pytest.raises(ValueError, match="at least 0"):
        ImagePool(size=-1)
