"""The probe: fixed patches, translated for validation and guards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

AT_ONCE = 8  # slices that are translated together; boxes go one by one


@dataclass(frozen=True)
class Probe:
    """Patches of both domains, the same at every validation.

    Attributes:
        real: "a", "b" -> (N, C, *spatial) in [-1, 1], of as many cases as possible.
        bodies: "a", "b" -> where they show the body, boolean, of the same shape.
        contrasts: "a", "b" -> number of contrasts among the channels of that domain; 1 where it is left out.
    """

    real: dict[str, Tensor]
    bodies: dict[str, Tensor]
    contrasts: Mapping[str, int] = field(default_factory=dict)

    @torch.inference_mode()
    def translate(self, generators: Mapping[str, nn.Module], device: torch.device) -> dict[str, Tensor]:
        """The translations of the patches: `fake_b` and, with a way back, `fake_a`, `cycle_a`, `cycle_b`."""
        images: dict[str, Tensor] = {}
        for source, target in (("a", "b"), ("b", "a")):
            forward, back = generators.get(f"gen_{source}{target}"), generators.get(f"gen_{target}{source}")
            if forward is None:
                continue
            made: dict[str, list[Tensor]] = {f"fake_{target}": [], f"cycle_{source}": []}
            for part in self.real[source].split(1 if self.real[source].dim() == 5 else AT_ONCE):
                fake = forward(part.to(device))
                made[f"fake_{target}"].append(fake.float().cpu())
                if back is not None:
                    made[f"cycle_{source}"].append(back(fake).float().cpu())
            images |= {name: torch.cat(parts) for name, parts in made.items() if parts}
        return images

    def of_each_contrast(self, domain: str, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, *spatial) of a domain, split into its contrasts, in order."""
        return images.chunk(self.contrasts.get(domain, 1), dim=1)


def bodies_for(bodies: Tensor, images: Tensor) -> Tensor:
    """Where patches show the body, for images of the same places with another number of contrasts.

    Args:
        bodies: (N, C, *spatial), boolean; the same for every contrast.
        images: (N, C', *spatial).

    Returns:
        (N, C', *spatial), boolean.
    """
    wanted = images.shape[1]
    if bodies.shape[1] < wanted:
        bodies = torch.cat([bodies] * -(-wanted // bodies.shape[1]), dim=1)
    return bodies[:, :wanted]
