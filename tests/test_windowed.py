"""The second look of discriminators through a narrow window."""

from __future__ import annotations

import math

import pytest
import torch

from medcyclegan.networks.discriminators.windowed import Windowed


def test_windowed_discriminator_sees_the_window_stretched() -> None:
    class Seen(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    windowed = Windowed(Seen(), [(-0.6, -0.4), (-0.7, 0.3)], channels=1)
    image = torch.tensor([-1.0, -0.6, -0.5, -0.4]).reshape(1, 1, 2, 2).repeat(1, 2, 1, 1)
    image[:, 0] = 0.3  # the source, of which nothing is stretched
    seen = windowed(image)
    assert seen.shape == (1, 4, 2, 2) and torch.equal(seen[:, :2], image)
    for channel, positions in ((2, (-5, -1, 0, 1)), (3, (-1.6, -0.8, -0.6, -0.4))):
        expected = torch.tensor([math.tanh(v) for v in positions])
        torch.testing.assert_close(seen[0, channel].flatten(), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="below"):
        Windowed(Seen(), [(0.2, 0.2)])
