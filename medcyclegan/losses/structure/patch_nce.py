"""PatchNCE: a patch of the translation is more like its own source patch than like others of the same image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcyclegan.losses.structure import View
from medcyclegan.registry import STRUCTURE_LOSSES


@STRUCTURE_LOSSES.register("patch_nce", paper="Park et al. 2020, Contrastive Learning for Unpaired Translation (CUT)")
class PatchNCE:
    """Contrastive loss between features of source and translation at the same places (equations 3 and 4 of the paper).

    The features are what the generator itself computes in the first half of its convolutions, at `layers` depths; a
    projection head per depth (two linear layers, trained along with the generators) brings them to `size` numbers of
    unit length. The negatives are other places of the same image.

    Args:
        weight: of the term.
        layers: depths at which features are taken.
        patches: places per image.
        size: of the projected features.
        temperature: of the contrast; 0.07 in the paper.
    """

    def __init__(
        self, weight: float = 1.0, layers: int = 4, patches: int = 128, size: int = 64, temperature: float = 0.07
    ) -> None:
        if min(layers, patches - 1, size) < 1 or temperature <= 0:
            raise ValueError(
                f"layers and size are at least 1, patches at least 2 and temperature above 0, got {layers}, {size}, "
                f"{patches} and {temperature}"
            )
        self.weight = weight
        self.layers = layers
        self.patches = patches
        self.size = size
        self.temperature = temperature
        self.heads: dict[str, nn.ModuleList] = {}

    def connect(self, generator: nn.Module, domain: str, example: Tensor) -> nn.Module:
        """The projection heads for translations into `domain`, to be trained along with `generator`.

        Args:
            example: (1, C, *spatial), on the generator's device; only its shape matters.
        """
        with torch.no_grad():
            channels = [feature.shape[1] for feature in self._features(generator, example)]
        heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, self.size), nn.ReLU(inplace=True), nn.Linear(self.size, self.size))
            for width in channels
        )
        self.heads[domain] = heads
        return heads

    def __call__(self, view: View) -> Tensor:
        heads = self.heads[view.domain]
        with torch.no_grad():
            # As in the paper's published form, only the translation is moved: the source's features are the target.
            keys = self._features(view.generator, view.source)
        queries = self._features(view.generator, view.translated)
        losses = []
        for key, query, head in zip(keys, queries, heads, strict=True):
            places = torch.randperm(key[0, 0].numel(), device=key.device)[: self.patches]
            k, q = (F.normalize(head(_at(feature, places)), dim=-1) for feature in (key, query))
            likeness = q @ k.detach().transpose(1, 2) / self.temperature
            target = torch.arange(likeness.shape[1], device=key.device).expand(len(likeness), -1)
            losses.append(F.cross_entropy(likeness.flatten(0, 1), target.flatten()))
        return torch.stack(losses).mean()

    def _features(self, generator: nn.Module, image: Tensor) -> list[Tensor]:
        convolutions = [m for m in generator.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
        # The first half is, in order of definition, the way down; the last depth is in the middle.
        half = max(1, len(convolutions) // 2)
        chosen = sorted({round(i * (half - 1) / max(1, self.layers - 1)) for i in range(self.layers)})
        features: list[Tensor] = []
        hooks = [
            convolutions[i].register_forward_hook(lambda module, inputs, output: features.append(output))
            for i in chosen
        ]
        try:
            generator(image)
        finally:
            for hook in hooks:
                hook.remove()
        return features


def _at(feature: Tensor, places: Tensor) -> Tensor:
    """(B, C, *spatial) to (B, N, C) in float32."""
    return feature.flatten(2)[:, :, places].transpose(1, 2).float()
