"""HU windows as additional channels for any discriminator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Windowed(nn.Module):
    """Appends narrow HU windows, stretched to the whole range, as channels to the images of a discriminator.

    In [-1, 1] for 4096 HU, the 100 HU by which a brain may be wrong are 0.05, less than a discriminator cares for while
    bone and air differ by 1.5. Radiologists solve this with windows for soft tissue and for bone, and so does this: per
    window it appends tanh((x - center) / half_width) of the last `channels` channels, which keeps a gradient beyond.

    Args:
        discriminator: takes `channels` more channels per window than its images have.
        windows: what is stretched, in [-1, 1].
        channels: last channels of the images that are shown again.
    """

    def __init__(self, discriminator: nn.Module, windows: Sequence[tuple[float, float]], channels: int = 1) -> None:
        super().__init__()
        for low, high in windows:
            if not low < high:
                raise ValueError(f"the first value of a window is below the second, got {(low, high)}")
        self.discriminator = discriminator
        self.windows = [((low + high) / 2, (high - low) / 2) for low, high in windows]  # center and half width
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        last = x[:, -self.channels :]
        stretched = [torch.tanh((last - center) / half_width) for center, half_width in self.windows]
        judged: Tensor | tuple[Tensor, ...] = self.discriminator(torch.cat([x, *stretched], dim=1))
        return judged
