"""Heights from area profiles: slices of one anatomy get one height, whatever the scan covers."""

from __future__ import annotations

import numpy as np
import pytest

from medcyclegan.data.heights import profile_heights
from medcyclegan.data.matching import relative_height
from medcyclegan.phantom.anatomy import head

STEP = 4.0


class Scan:
    """The areas of a phantom head in slices of 4 mm between two heights, and the true heights in head space (mm)."""

    def __init__(self, seed: int, low: float, high: float) -> None:
        subject = head(seed)
        center = subject.world((0, 0, 0))
        levels = np.arange(center[2] + low, center[2] + high, STEP)
        x, y = np.arange(-110, 111, 8.0) + center[0], np.arange(-135, 136, 8.0) + center[1]
        points = np.stack(np.meshgrid(x, y, levels, indexing="ij")).reshape(3, -1)
        body = (subject.tissue_at(points) > 0).reshape(len(x), len(y), len(levels))
        self.areas = body.sum(axis=(0, 1)) * 64.0
        along = np.stack(
            [np.full_like(levels, center[0]), np.full_like(levels, center[1]), levels, np.ones_like(levels)]
        )
        self.true = (np.linalg.inv(subject.pose) @ along)[2]


def cohorts(scenario: str) -> tuple[list[Scan], list[Scan]]:
    rng = np.random.default_rng(0)
    if scenario == "same coverage":
        return tuple([Scan(seed + i, -95 + rng.uniform(-5, 5), 125) for i in range(4)] for seed in (1000, 2000))  # type: ignore[return-value]
    a = [Scan(1000 + i, -110 + rng.uniform(-15, 15), 125) for i in range(4)]
    tops = (125, 125, 125, 125) if scenario == "different necks" else (125, 60, 45, 75)
    return a, [Scan(2000 + i, -55 + rng.uniform(-20, 20), top) for i, top in enumerate(tops)]


def error(a: list[Scan], b: list[Scan], heights: list[np.ndarray]) -> float:
    """Mean distance in mm between where a slice of a truly lies and where its partner in b does."""
    found = []
    for scan, at in zip(a, heights[: len(a)], strict=True):
        for other, there in zip(b, heights[len(a) :], strict=True):
            usable = np.flatnonzero(other.areas > 0.05 * other.areas.max())
            for k in np.flatnonzero(scan.areas > 0.05 * scan.areas.max()):
                if other.true[usable].min() <= scan.true[k] <= other.true[usable].max():
                    partner = usable[np.abs(there[usable] - at[k]).argmin()]
                    found.append(abs(other.true[partner] - scan.true[k]))
    return float(np.mean(found))


@pytest.mark.parametrize("scenario", ["same coverage", "different necks", "cut tops"])
def test_partners_lie_where_they_should(scenario: str) -> None:
    a, b = cohorts(scenario)
    profile = error(a, b, profile_heights([scan.areas for scan in [*a, *b]], STEP))
    assert profile < 5  # slices are 4 mm apart
    for name in ("extent", "vertex"):
        assert profile < error(a, b, [relative_height(scan.areas, name) for scan in [*a, *b]])
    if scenario == "cut tops":
        assert error(a, b, [relative_height(scan.areas, "vertex") for scan in [*a, *b]]) > 2 * profile


def test_a_shifted_and_stretched_scan_is_laid_back() -> None:
    place = np.arange(100.0)
    areas = 200.0**2 * np.sin(place / 99 * np.pi) ** 2 * (1 + 0.4 * np.sin(place / 9)) + 1
    heights = profile_heights([areas, areas[15:]], distance=3.0)
    width = np.sqrt(areas.max())
    np.testing.assert_allclose(heights[1], heights[0][15:], atol=0.011)  # half a step of the shifts, and rounding
    assert np.diff(heights[0]) == pytest.approx(3.0 / width, rel=0.13)


def test_a_scan_without_body_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        profile_heights([np.zeros(5)])
