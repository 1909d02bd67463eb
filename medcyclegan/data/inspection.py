"""What is suspicious about a volume or a cohort, told from its intensities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt


def looks_like_hu(values: npt.NDArray[np.floating]) -> bool:
    """True if the values of a volume, any shape, look like a CT in Hounsfield units.

    Hounsfield units are fixed by air (-1000) and water (0). A CT of a patient has both, each in 1 % of the voxels or
    more, and fits 16 bits; MR magnitudes have no negatives.
    """
    sample = values[:: max(1, values.shape[0] // 64)]
    air = np.mean((sample > -1100) & (sample < -800))
    tissue = np.mean((sample > -200) & (sample < 300))
    return bool(air > 0.01 and tissue > 0.01 and sample.max() <= 32767)


def modality_suspicions(hu: Mapping[str, bool], modality: str) -> list[str]:
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
