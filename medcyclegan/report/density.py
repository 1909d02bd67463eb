"""Joint histogram of HU and counts of a Bland-Altman plot over a whole cohort, in bounded memory.

Cases are added one by one, the voxels inside their masks. Values beyond the ends of an axis are counted in its last
bin, so that every voxel is counted; the sums are of the values themselves.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from medcyclegan.evaluation.metrics.score import Volume

Inside = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

BIN_HU = 20.0
HU_LOW, HU_HIGH = -1024.0, 3076.0  # whole bins; covers the 12 bits of a CT
DIFFERENCE_LIMIT = 2000.0
HU_EDGES = np.arange(HU_LOW, HU_HIGH + 1, BIN_HU)
DIFFERENCE_EDGES = np.arange(-DIFFERENCE_LIMIT, DIFFERENCE_LIMIT + 1, BIN_HU)


class HuDensity:
    """Counts over all cases added so far.

    Attributes:
        joint: (reference bin, synthetic bin), over `HU_EDGES` both.
        agreement: (bin of the mean of both, bin of synthetic - reference), over `HU_EDGES` and `DIFFERENCE_EDGES`.
        cases: per case (mean of both over the mask, mean of synthetic - reference), HU.
        voxels: how many pairs were counted.
        beyond: how many of them lie beyond an end of `HU_EDGES` or `DIFFERENCE_EDGES`.
    """

    def __init__(self) -> None:
        bins, differences = len(HU_EDGES) - 1, len(DIFFERENCE_EDGES) - 1
        self.joint: Counts = np.zeros((bins, bins), dtype=np.int64)
        self.agreement: Counts = np.zeros((bins, differences), dtype=np.int64)
        self.cases: list[tuple[float, float]] = []
        self.voxels = self.beyond = 0
        self._sum = self._squares = 0.0

    def add(self, reference: Volume, synthetic: Volume, inside: Inside) -> None:
        """Count one case.

        Args:
            reference: (X, Y, Z), HU, finite in the mask.
            synthetic: (X, Y, Z), HU, finite in the mask.
            inside: (X, Y, Z); an empty mask adds nothing.
        """
        ct = np.asarray(reference[inside], dtype=np.float64)
        sct = np.asarray(synthetic[inside], dtype=np.float64)
        if ct.size == 0:
            return
        mean, difference = (ct + sct) / 2, sct - ct
        self.joint += _counted(ct, HU_EDGES, sct, HU_EDGES)
        self.agreement += _counted(mean, HU_EDGES, difference, DIFFERENCE_EDGES)
        self.cases.append((float(mean.mean()), float(difference.mean())))
        self.voxels += ct.size
        outside = np.zeros(ct.shape, dtype=bool)
        for values, edges in ((ct, HU_EDGES), (sct, HU_EDGES), (difference, DIFFERENCE_EDGES)):
            outside |= (values < edges[0]) | (values > edges[-1])
        self.beyond += int(np.count_nonzero(outside))
        self._sum += float(difference.sum())
        self._squares += float(np.square(difference).sum())

    @property
    def bias(self) -> float:
        """Mean of synthetic - reference over all voxels, HU; nan without a voxel."""
        return self._sum / self.voxels if self.voxels else math.nan

    @property
    def limits_of_agreement(self) -> tuple[float, float]:
        """bias ± 1.96 sample standard deviations of the differences (Bland and Altman 1986), HU."""
        if self.voxels < 2:
            return math.nan, math.nan
        spread = math.sqrt(max(0.0, self._squares - self._sum**2 / self.voxels) / (self.voxels - 1))
        return self.bias - 1.96 * spread, self.bias + 1.96 * spread


def _counted(
    rows: npt.NDArray[np.float64],
    row_edges: npt.NDArray[np.float64],
    columns: npt.NDArray[np.float64],
    column_edges: npt.NDArray[np.float64],
) -> Counts:
    """A 2D histogram over equal bins, the ends open; many times faster than numpy's, which searches each edge."""
    width = len(column_edges) - 1
    flat = _bin(rows, row_edges) * width + _bin(columns, column_edges)
    return np.bincount(flat, minlength=(len(row_edges) - 1) * width).reshape(-1, width)


def _bin(values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    step = edges[1] - edges[0]
    return np.clip(np.floor((values - edges[0]) / step), 0, len(edges) - 2).astype(np.int64)
