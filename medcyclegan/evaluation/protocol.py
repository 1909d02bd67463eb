"""Which metrics are computed, and in which HU range: the conventions under which numbers may be compared.

The two challenges' definitions are followed exactly; `native` is everything we measure, over the range of our own CT
scaling.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from medcyclegan.errors import InputError

Family = Literal["intensity", "tissue", "bone", "range"]


@dataclass(frozen=True)
class Protocol:
    """A named set of metrics over one HU range.

    Attributes:
        name: as given to `protocol`.
        low: HU to which PSNR, SSIM and MS-SSIM clip from below, and the value outside the mask.
        high: HU to which they clip from above.
        metrics: names of the headline metrics, in the order in which they are shown.
        families: other groups of metrics: other intensity metrics, errors per tissue, bone surfaces,
            range errors.
        organizers: label maps without any class found are scored as SynthRAD2025 does.
    """

    name: str
    low: float
    high: float
    metrics: tuple[str, ...]
    families: tuple[Family, ...] = ()
    organizers: bool = False


PROTOCOLS = {
    entry.name: entry
    for entry in (
        Protocol(
            "native",
            -1024,
            3071,
            ("mae", "psnr", "ssim", "ms_ssim", "me", "mae_bone"),
            ("intensity", "tissue", "bone", "range"),
        ),
        Protocol("synthrad2023", -1024, 3000, ("mae", "psnr", "ssim")),
        Protocol("synthrad2025", -1024, 3071, ("mae", "psnr", "ms_ssim"), organizers=True),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        InputError: there is none; the message lists all and the nearest.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name.lower(), PROTOCOLS, n=1)
        raise InputError(
            f"There is no evaluation protocol '{name}'; there are: {', '.join(PROTOCOLS)}.",
            f"Did you mean '{near[0]}'?" if near else "Choose one of these.",
        )
    return PROTOCOLS[name]
