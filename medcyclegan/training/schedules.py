"""Schedules: how the learning rate changes over a training. A *factor* multiplies the rate that the config gives."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

Kind = Literal["linear", "cosine", "plateau"]
KINDS: tuple[str, ...] = get_args(Kind)
BETTER = 1e-3  # share of the best score by which a score must be lower to count as better


class Schedule:
    """Factor of the learning rate at every step, the same for all optimizers.

    - "linear": 1, then from the share `decay_start` of the steps linearly to 0 (CycleGAN, Zhu et al. 2017, section 4);
    - "cosine": the same by half a cosine instead (Loshchilov and Hutter 2017, SGDR, equation 5, without restarts);
    - "plateau": 1, times `plateau_factor` whenever `plateau_patience` validations in a row do not improve on the best.

    Args:
        kind: one of `KINDS`.
        steps: length of the training.
        decay_start: share of the steps at constant rate; of no meaning for "plateau".
        warmup: steps over which the factor first rises linearly from 1 / (warmup + 1); 0: none.
        plateau_patience: validations.
        plateau_factor: between 0 and 1.

    Raises:
        ValueError: for values outside these ranges.
    """

    def __init__(
        self,
        kind: Kind = "linear",
        *,
        steps: int,
        decay_start: float = 0.5,
        warmup: int = 0,
        plateau_patience: int = 5,
        plateau_factor: float = 0.5,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind!r}")
        if not 0 <= decay_start <= 1 or warmup < 0 or plateau_patience < 1 or not 0 < plateau_factor < 1:
            raise ValueError(
                "decay_start is in [0, 1], warmup at least 0, plateau_patience at least 1 and plateau_factor between "
                f"0 and 1, got {decay_start}, {warmup}, {plateau_patience} and {plateau_factor}"
            )
        self.kind = kind
        self.steps = steps
        self.decay_start = decay_start
        self.warmup = warmup
        self.plateau_patience = plateau_patience
        self.plateau_factor = plateau_factor
        self.best: float | None = None
        self.waited = 0
        self.cuts = 0

    def factor(self, step: int) -> float:
        """Factor for the update that follows `step` finished ones. Between 0 and 1."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        if self.kind == "linear":
            return rise * linear_decay(step, self.steps, self.decay_start)
        if self.kind == "cosine":
            return rise * 0.5 * (1 - math.cos(math.pi * linear_decay(step, self.steps, self.decay_start)))
        return float(rise * self.plateau_factor**self.cuts)

    def observe(self, score: float) -> bool:
        """Record a validation's score, lower is better; True if the rate falls now."""
        if self.kind != "plateau":
            return False
        if self.best is None or score < self.best - BETTER * abs(self.best):
            self.best, self.waited = score, 0
            return False
        self.waited += 1
        if self.waited < self.plateau_patience:
            return False
        self.waited = 0
        self.cuts += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "cuts": self.cuts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = None if state["best"] is None else float(state["best"])
        self.waited, self.cuts = int(state["waited"]), int(state["cuts"])


def linear_decay(step: int, steps: int, decay_start: float) -> float:
    """1, then from the share `decay_start` of the steps linearly to 0."""
    remaining = steps - step
    decaying = steps - int(decay_start * steps)
    return min(1.0, remaining / max(1, decaying))
