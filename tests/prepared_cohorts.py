"""Cohorts prepared with chosen knobs, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcyclegan.cohort.cases import Cohort
from medcyclegan.data.prepared import PreparedCohort, prepare_cohort
from medcyclegan.transforms.pipeline import Preparation

MODALITIES = {"a": "MR", "b": "CT"}


def prepare(
    cohort: Cohort,
    output: Path,
    *,
    modalities: Mapping[str, str] = MODALITIES,
    channels: Mapping[str, Sequence[str]] | None = None,
    register_pairs: bool = False,
    workers: int = 1,
    **knobs: Any,
) -> PreparedCohort:
    """Prepare with the same knobs in both domains; `channels` names them, by default as the cohort does."""
    names = dict.fromkeys(modalities, ("",)) | dict(cohort.contrasts) | dict(channels or {})
    how = {d: [Preparation(modality, name=name, **knobs) for name in names[d]] for d, modality in modalities.items()}
    return prepare_cohort(cohort, output, how, register_pairs=register_pairs, workers=workers)
