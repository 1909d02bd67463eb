"""Several MR contrasts of one patient joined into one case, whose channels they become.

Words used here. *Contrast*: the kind of one scan of a patient, "T1w" or "T2w", as its layout names it. *Order*: that
in which the user names the contrasts; it is the order of the channels.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from medcyclegan.cohort.layouts.scan import Scan

# BIDS: visits of one patient, whose scans are not mixed.
_SESSION = re.compile(r"(?:^|_)(ses-[^_]+)")


@dataclass(frozen=True)
class Joined:
    """The scans of one domain, joined into cases.

    Attributes:
        scans: one per case, of all its contrasts.
        names: of the contrasts, in order.
        incomplete: cases that lack a contrast, one line each; they are in no scan.
        problems: what is ambiguous, one line each.
    """

    scans: tuple[Scan, ...]
    names: tuple[str, ...]
    incomplete: tuple[str, ...]
    problems: tuple[str, ...]


def named_contrasts(wanted: str | None, kinds: Iterable[str]) -> list[str]:
    """The patterns of "T1w,T2w", in order; one pattern where a kind of scan has that very name, comma and all."""
    if not wanted:
        return []
    if wanted.lower() in {kind.lower() for kind in kinds}:
        return [wanted]
    return [part.strip() for part in wanted.split(",") if part.strip()] or [wanted]


def matches(scan: Scan, pattern: str) -> bool:
    """True if the scan's kind matches a name with the wildcards * and ?, in any letter case."""
    return fnmatch.fnmatchcase(scan.kind.lower(), pattern.lower())


def join_contrasts(scans: Sequence[Scan], patterns: Sequence[str]) -> Joined:
    """Join the scans of each patient that have the contrasts into one case, in this order.

    Scans of one case id belong together. Where case ids differ between contrasts, as in DICOM, the scans of a patient
    do, of one session where BIDS has several.

    Args:
        scans: of one domain.
        patterns: at least two, what the contrasts are called, with * and ?.
    """
    problems = []
    slots: dict[Scan, int] = {}
    for scan in scans:
        fitting = [index for index, pattern in enumerate(patterns) if matches(scan, pattern)]
        if len(fitting) > 1:
            both = " and ".join(f"'{patterns[index]}'" for index in fitting)
            problems.append(f"{scan.image} ({scan.kind}) fits {both}; name the contrasts so that each scan fits one")
        elif fitting:
            slots[scan] = fitting[0]
    whole: list[list[Scan]] = []
    groups: list[list[list[Scan]]] = []
    left: Iterable[Scan] = slots
    for by_patient in (False, True):
        groups = [_by_slot(group, slots, len(patterns)) for group in _grouped(left, by_patient=by_patient)]
        whole += [[scan for (scan,) in parts] for parts in groups if all(len(part) == 1 for part in parts)]
        groups = [parts for parts in groups if any(len(part) != 1 for part in parts)]
        left = [scan for parts in groups for part in parts for scan in part]
    incomplete = []
    for parts in groups:
        someone = next(scan for part in parts for scan in part)
        who = someone.patient or someone.case
        if missing := [pattern for pattern, part in zip(patterns, parts, strict=True) if not part]:
            incomplete.append(f"{who} has no {' and no '.join(missing)}")
        else:
            problems += [
                f"{who}: more than one {pattern}: {', '.join(str(scan.image) for scan in part)}"
                for pattern, part in zip(patterns, parts, strict=True)
                if len(part) > 1
            ]
    names: list[str] = []
    for index, pattern in enumerate(patterns):
        kinds = {group[index].kind for group in whole}
        names.append(kinds.pop() if len(kinds) == 1 else pattern)
    if len(set(names)) < len(names):
        names = list(patterns)
    joined = tuple(replace(group[0], images=tuple(scan.image for scan in group)) for group in whole)
    return Joined(joined, tuple(names), tuple(incomplete), tuple(problems))


def _grouped(scans: Iterable[Scan], *, by_patient: bool) -> list[list[Scan]]:
    groups: dict[tuple[str, ...], list[Scan]] = defaultdict(list)
    for scan in scans:
        session = match.group(1) if (match := _SESSION.search(scan.case)) else ""
        key = (scan.patient or scan.case, session) if by_patient else (scan.patient, scan.case)
        groups[(scan.split, *key)].append(scan)
    return [groups[key] for key in sorted(groups)]


def _by_slot(group: Sequence[Scan], slots: dict[Scan, int], count: int) -> list[list[Scan]]:
    return [[scan for scan in group if slots[scan] == index] for index in range(count)]
