"""A history of generated images for the discriminator (Shrivastava et al. 2017, section 2.3; CycleGAN section 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medcyclegan import ranks


class ImagePool:
    """Keeps up to `size` fakes; once full, each new fake is with probability 1/2 swapped for a stored one.

    Of several processes that train together, each holds the same pool: it is fed the fakes of all of them, in the order
    of the joint batch, and each takes its own share of the answer. So it equals the pool of a single process.

    Args:
        size: images kept; 0 hands every fake through.
        seed: of the pool's own random numbers, so that nothing else disturbs them.
    """

    def __init__(self, size: int = 50, seed: int = 0) -> None:
        if size < 0:
            raise ValueError(f"size is at least 0, got {size}")
        self.size = size
        self.images: list[Tensor] = []
        self.random = torch.Generator().manual_seed(seed)

    def query(self, fakes: Tensor) -> Tensor:
        """Give as many images as came in. (B, C, *spatial), detached."""
        fakes = fakes.detach()
        if self.size == 0:
            return fakes
        answer = []
        for image in ranks.all_gather(fakes):
            if len(self.images) < self.size:
                self.images.append(_whole(image, self.images[-1] if self.images else torch.zeros_like(image)))
                answer.append(image)
            elif torch.rand((), generator=self.random) < 0.5:
                index = int(torch.randint(self.size, (), generator=self.random))
                answer.append(self.images[index])
                self.images[index] = _whole(image, self.images[index])
            else:
                answer.append(image)
        rank, share = ranks.rank_and_world()[0], len(fakes)
        return torch.stack(answer[rank * share : (rank + 1) * share])

    def state_dict(self) -> dict[str, Any]:
        return {"images": [image.cpu() for image in self.images], "random": self.random.get_state()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        if len({image.shape for image in state["images"]}) > 1:
            raise ValueError("the images in the pool are of several shapes")
        self.images = [image.to(device) for image in state["images"]]
        self.random.set_state(state["random"])


def _whole(image: Tensor, substitute: Tensor) -> Tensor:
    """A copy to keep; of the substitute if the image is not finite, decided on the device."""
    return torch.where(torch.isfinite(image).all(), image, substitute)
