"""Whether intensities are Hounsfield units, and whether they fit the modality."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from medcyclegan.io.plausible import CT_HU


def looks_like_hu(values: npt.NDArray[np.floating]) -> bool:
    """True if the values of a volume, any shape, look like a CT in Hounsfield units.

    Hounsfield units are fixed by air (-1000) and water (0). A CT of a patient has both, each in 1 % of the voxels or
    more, and nothing that no CT has; MR magnitudes have no negatives.
    """
    sample = values[:: max(1, values.shape[0] // 64)]
    air = np.mean((sample > -1100) & (sample < -800))
    tissue = np.mean((sample > -200) & (sample < 300))
    return bool(air > 0.01 and tissue > 0.01 and sample.max() <= CT_HU[1])


def modality_findings(hu: Mapping[str, bool], modality: str) -> list[str]:
    """The cases of one domain whose values do not fit its modality, one line each.

    Args:
        hu: case id -> whether its values look like Hounsfield units.
        modality: "MR" or "CT".
    """
    if modality == "CT":
        return [
            f"{case}: values do not look like Hounsfield units (no air near -1000 beside tissue near 0)"
            for case, looks in hu.items()
            if not looks
        ]
    return [f"{case}: values look like a CT in Hounsfield units, not like an MR" for case, looks in hu.items() if looks]


def hu_offset(values: npt.NDArray[np.floating]) -> float | None:
    """The offset to subtract from the values of a volume, any shape, to get Hounsfield units, or None.

    Scanners store HU + 1024, and the DICOM header takes it off; exporters that forget the header leave it in. A volume
    is taken for such a CT if it has no negatives, a fifth of what is not air lies within 60 of one soft-tissue value
    near 1060, hardly anything lies between air and fat, and there is air. The air confirms the offset of 1024:
    its most frequent value other than the smallest (which may be padding) must lie within 12 of 24.
    """
    sample = values[:: max(1, values.shape[0] // 64)].ravel()
    if sample.size == 0 or sample.min() < -100 or not looks_like_hu(sample[:, None] - 1024):
        return None
    tissue = sample[sample > 324]
    counts, edges = np.histogram(tissue, bins=40, range=(864, 1264))
    mode = edges[counts.argmax()] + 5
    if np.mean(np.abs(tissue - mode) < 60) < 0.2 or np.mean(tissue < 824) > 0.15:
        return None
    air = sample[(sample < 224) & (sample > sample.min())]
    counts, edges = np.histogram(air, bins=60, range=(-76, 224))
    if counts.max() == 0 or abs(edges[counts.argmax()] + 2.5 - 24) > 12:
        return None
    return 1024.0
