"""Structure losses, one file each: they keep anatomy in place without paired data.

Unpaired training only asks that translations look like the target domain, so a network may move a border or invent a
structure and still be consistent over the cycle. A structure loss compares a translation with its own source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class View:
    """One direction of one step, as a structure loss sees it.

    Attributes:
        source: real images, (B, C, *spatial) in [-1, 1].
        translated: their translations, (B, C', *spatial) in [-1, 1].
        cycle: translated back, (B, C, *spatial); None where the objective has no way back.
        body: where the source shows the body, (B, 1, *spatial) or (B, C, *spatial), boolean.
        domain: that of the translation, "a" or "b".
        generator: the network that translated.
    """

    source: Tensor
    translated: Tensor
    cycle: Tensor | None
    body: Tensor
    domain: str
    generator: nn.Module


class StructureLoss(Protocol):
    """A weighted term of the generators' loss."""

    weight: float

    def __call__(self, view: View) -> Tensor:
        """Without the weight. Scalar."""
        ...


def mean_inside(values: Tensor, body: Tensor) -> Tensor:
    """Mean over the body: `values` (B, N, *spatial), `body` (B, 1 or N, *spatial). 0 where there is no body."""
    weight = body.to(values.dtype).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp_min(1)
