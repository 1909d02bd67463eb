"""A second look at CT through a narrow window, for any discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Windowed(nn.Module):
    """Shows a discriminator its images twice: as they are, and with a narrow window stretched to the whole range.

    In [-1, 1] for 4096 HU, the 100 HU by which a brain may be wrong are 0.05, less than a discriminator cares for while
    bone and air differ by 1.5. Radiologists solve this with a soft-tissue window, and so does this: it appends
    tanh((x - center) / half_width) of the last `channels` channels, which keeps a gradient beyond the window.

    Args:
        discriminator: takes `channels` more channels than its images have.
        window: what is stretched, in [-1, 1].
        channels: last channels of the images that are shown again.
    """

    def __init__(self, discriminator: nn.Module, window: tuple[float, float], channels: int = 1) -> None:
        super().__init__()
        low, high = window
        if not low < high:
            raise ValueError(f"the first value of a window is below the second, got {window}")
        self.discriminator = discriminator
        self.center, self.half_width = (low + high) / 2, (high - low) / 2
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        stretched = torch.tanh((x[:, -self.channels :] - self.center) / self.half_width)
        judged: Tensor | tuple[Tensor, ...] = self.discriminator(torch.cat([x, stretched], dim=1))
        return judged
