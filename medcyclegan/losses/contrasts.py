"""Structure losses where a domain has several contrasts as channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from medcyclegan.losses.structure import StructureLoss, View


class OfEveryContrast:
    """The mean of a structure loss over every pair of a contrast of the source and one of the translation.

    A border that the translation has and one contrast does not show costs half as much as one that no contrast shows.
    The mean of the contrasts themselves would be no substitute: what is bright in T1 and dark in T2 vanishes from it.

    Args:
        loss: compares one contrast, (B, C, *spatial), with one.
        contrasts: "a", "b" -> number of contrasts among the channels of that domain; 1 where it is left out.
    """

    def __init__(self, loss: StructureLoss, contrasts: Mapping[str, int]) -> None:
        self.loss = loss
        self.weight = loss.weight
        self.contrasts = dict(contrasts)

    def __call__(self, view: View) -> Tensor:
        source = "a" if view.domain == "b" else "b"
        count, made = self.contrasts.get(source, 1), self.contrasts.get(view.domain, 1)
        bodies = view.body.chunk(count, dim=1) if view.body.shape[1] > 1 else (view.body,) * count
        cycles = [None] * count if view.cycle is None else view.cycle.chunk(count, dim=1)
        return torch.stack(
            [
                self.loss(replace(view, source=real, translated=translated, cycle=cycle, body=body))
                for real, cycle, body in zip(view.source.chunk(count, dim=1), cycles, bodies, strict=True)
                for translated in view.translated.chunk(made, dim=1)
            ]
        ).mean()
