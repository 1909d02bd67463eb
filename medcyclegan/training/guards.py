"""What stops a training that has gone wrong before it can do harm."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medcyclegan.errors import InputError


def require_finite(values: Mapping[str, float], step: int) -> None:
    """Stop a training whose losses are no longer numbers.

    Raises:
        InputError: naming the losses, the step and what to try.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise InputError(
            f"the training diverged: {', '.join(bad)} not finite at step {step}; the last checkpoint was saved before.",
            "Train again with --set training.precision=float32, or a lower training.learning_rate.",
        )
