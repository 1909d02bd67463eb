"""The body, and bone where it can be thresholded, keep their shape through translation and cycle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from medcyclegan.losses.structure import View, mean_inside
from medcyclegan.registry import STRUCTURE_LOSSES

BACKGROUND = -1.0


@STRUCTURE_LOSSES.register(
    "mask_consistency",
    paper="Phan et al. 2023, Structure-Preserving Synthesis: MaskGAN for Unpaired MR-CT Translation",
)
class MaskConsistency:
    """Penalizes what leaves the body's outline, and bone that changes over the cycle.

    After MaskGAN, but with the body masks that preparation has made instead of learned ones:

    - outside the source's body, translation and cycle are background: mean |x + 1| / 2 there;
    - in the body's outermost voxels, a translation into CT is tissue: mean max(0, air - x) there, since skin is;
    - where a domain is CT, bone of the source is bone after the cycle: 1 - soft Dice of sigmoid((x - bone) / softness).

    Args:
        windows: domain -> the HU that are -1 and 1 there; None for a domain that is not CT.
        weight: of the term.
        air_hu: tissue lies above.
        bone_hu: bone lies above.
        rim: thickness in voxels of what counts as the outermost voxels.
    """

    def __init__(
        self,
        windows: Mapping[str, tuple[float, float] | None],
        weight: float = 1.0,
        air_hu: float = -400.0,
        bone_hu: float = 250.0,
        rim: int = 1,
    ) -> None:
        if rim < 0 or air_hu >= bone_hu:
            raise ValueError(f"rim is at least 0 and air_hu below bone_hu, got {rim}, {air_hu} and {bone_hu}")
        self.weight = weight
        self.rim = rim
        self.air = {d: None if w is None else _scaled(air_hu, w) for d, w in windows.items()}
        self.bone = {d: None if w is None else _scaled(bone_hu, w) for d, w in windows.items()}
        # 50 HU: about the width of the partial volume that a threshold cannot decide.
        self.softness = {d: None if w is None else 100.0 / (w[1] - w[0]) for d, w in windows.items()}

    def __call__(self, view: View) -> Tensor:
        body = view.body.any(dim=1, keepdim=True)
        translated = view.translated.float()
        loss = mean_inside((translated - BACKGROUND).abs() / 2, ~body)
        air = self.air[view.domain]
        if air is not None and self.rim:
            loss = loss + mean_inside(F.relu(air - translated), body & ~_eroded(body, self.rim))
        if view.cycle is not None:
            cycle = view.cycle.float()
            loss = loss + mean_inside((cycle - BACKGROUND).abs() / 2, ~body)
            origin = "b" if view.domain == "a" else "a"
            if (bone := self.bone[origin]) is not None and (softness := self.softness[origin]) is not None:
                before, after = (torch.sigmoid((x - bone) / softness) for x in (view.source.float(), cycle))
                loss = loss + 1 - (2 * (before * after).sum() + 1) / (before.square().sum() + after.square().sum() + 1)
        return loss


def _scaled(hu: float, window: tuple[float, float]) -> float:
    low, high = window
    return 2 * (hu - low) / (high - low) - 1


def _eroded(body: Tensor, voxels: int) -> Tensor:
    pool = {4: F.max_pool2d, 5: F.max_pool3d}[body.dim()]
    # The body is assumed to continue beyond the border of the patch: a crop is not skin.
    grown: Tensor = pool((~body).float(), 2 * voxels + 1, stride=1, padding=voxels)
    return grown < 0.5
