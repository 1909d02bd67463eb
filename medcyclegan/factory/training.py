"""A training about to start or resume, from which its trainer, checkpoints and monitors are made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from medcyclegan import config, ranks
from medcyclegan.config import Experiment
from medcyclegan.data.patches import PatchSpec
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.data.stored_case import StoredCase
from medcyclegan.errors import InputError

DESCRIBED = 64  # volumes of a domain whose features a checkpoint keeps


@dataclass(frozen=True)
class Training:
    """A training at its beginning, or where a checkpoint was saved.

    Attributes:
        experiment: resolved.
        prepared: what it trains on.
        run: its folder.
        device: where this process trains.
        given: the experiment before it was resolved, as plain data; None: as resolved.
        checkpoint: what it resumes from; None at its beginning.
        newest: whether `checkpoint` is the run's newest, and not one to go back to.
    """

    experiment: Experiment
    prepared: PreparedCohort
    run: Path
    device: torch.device
    given: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    newest: bool = True

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.checkpoint["step"]) if self.checkpoint else 0

    @cached_property
    def patches(self) -> PatchSpec:
        patches = self.experiment.patches
        if patches.size is None:
            raise ValueError("a training has a resolved experiment, whose patches.size is set")
        return PatchSpec(patches.size, patches.plane, patches.neighbors)

    @cached_property
    def contrasts(self) -> dict[str, int]:
        """Domain -> how many contrasts its images have."""
        return {name: domain.volumes for name, domain in self.experiment.domains}

    @cached_property
    def domains(self) -> dict[str, dict[str, Any]]:
        """The description of each domain in a checkpoint, all that conversion needs."""
        return {
            domain: {
                "name": getattr(self.experiment.domains, domain).name,
                "channels": [
                    {
                        "preparation": asdict(preparation),
                        "scaler": self.prepared.typical_scaler(domain, number).to_dict(),
                    }
                    for number, preparation in enumerate(self.prepared.preparations[domain])
                ],
                "cohort": _features(self.prepared.cases[domain]),
            }
            for domain in ("a", "b")
        }

    @cached_property
    def shares(self) -> tuple[int, int]:
        """See `shared_batch`."""
        return shared_batch(self.experiment.training, ranks.rank_and_world()[1], self.checkpoint)


def shared_batch(settings: config.Training, processes: int, checkpoint: Mapping[str, Any] | None) -> tuple[int, int]:
    """Patches of each domain that all processes take in a step, and micro-batches that each works through them in.

    A run that is resumed with another number of processes keeps its batch: the patches of every step, their order and
    what the image pools do stay the same.

    Raises:
        InputError: if that many processes cannot share the batch.
    """
    batch = settings.batch_size * settings.accumulate * processes
    if checkpoint:
        before = checkpoint["processes"]
        # Without one the batch size was changed.
        batch = checkpoint.get("batch", settings.batch_size * settings.accumulate * before)
        if batch % processes:
            possible = [str(n) for n in range(1, batch + 1) if batch % n == 0]
            raise InputError(
                f"the run takes {batch} patches of each domain in a step, which {processes} processes cannot share "
                "equally.",
                f"Start {', '.join(possible)} processes, or change training.batch_size with --allow-changes.",
            )
        if before != processes:
            warnings.warn(
                f"goes on with {processes} processes instead of {before}: each step's {batch} patches, their order and "
                "the image pools stay the same, but sums are formed in another order, so that the weights are equal to "
                "within rounding and no longer bit for bit",
                stacklevel=2,
            )
    share = batch // processes
    return batch, next(n for n in range(1, share + 1) if share % n == 0 and share // n <= settings.batch_size)


def _features(cases: Sequence[StoredCase]) -> list[dict[str, Any]]:
    """Features of at most `DESCRIBED` training volumes, so that conversion can flag volumes unlike them."""
    every = max(1, -(-len(cases) // DESCRIBED))
    return [case.features.to_dict() for case in cases[::every]]
