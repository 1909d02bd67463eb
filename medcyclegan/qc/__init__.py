"""Quality control: findings about single volumes, about a volume within its domain, and between the domains.

A *finding* is a reason to look, with its remedy. Its severity says what follows: an *error* makes training or its
result wrong, a *warning* may, a *note* is worth knowing. Each has a criterion with a rationale, see `RULES`; the
thresholds were set on phantom heads (seeds below 400; for mirrored ones 2000 to 2400) and seven real heads, and are
tested on other phantoms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medcyclegan.qc.cohort_rules import cohort_findings
from medcyclegan.qc.kinds import Kind, kinds
from medcyclegan.qc.rules import ERROR, NOTE, RULES, SEVERITIES, WARNING, Finding, Rule, Volume
from medcyclegan.qc.volume_rules import volume_findings

__all__ = [
    "ERROR",
    "NOTE",
    "RULES",
    "SEVERITIES",
    "WARNING",
    "Finding",
    "Kind",
    "Rule",
    "Volume",
    "all_findings",
    "cohort_findings",
    "kinds",
    "volume_findings",
]

_OF_UPRIGHT_HEADS = {"contrast", "stripped", "defaced"}


def all_findings(volumes: Sequence[Volume], modalities: Mapping[str, str]) -> list[Finding]:
    """All findings about a cohort, errors first, then in the order of `RULES`.

    Args:
        volumes: of all domains; domain "" is no cohort, its volumes are compared for duplicates only.
        modalities: domain -> "MR" or "CT".
    """
    beside = cohort_findings(volumes, modalities)
    turned = {s.file for s in beside if s.code == "turned"}
    alone = [s for volume in volumes for s in volume_findings(volume)]
    # With wrong axes, the face is searched in the wrong place.
    found = [s for s in alone if s.file not in turned or s.code not in _OF_UPRIGHT_HEADS]
    # A cut or defaced head differs from the others for that reason.
    doubtful = {s.file for s in alone if s.severity != NOTE}
    found += [s for s in beside if s.code != "mirrored" or s.file not in doubtful]
    order = {code: (SEVERITIES.index(rule.severity), n) for n, (code, rule) in enumerate(RULES.items())}
    return sorted(found, key=lambda s: (order[s.code], s.domain, s.file))
