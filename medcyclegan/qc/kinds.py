"""Findings of one kind as one message: number of volumes, the first names, what was found and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from medcyclegan.qc.rules import Finding

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_NAMES = 3  # shown; the rest is counted
_MESSAGES = 3  # different ones shown


@dataclass(frozen=True)
class Kind:
    """Findings of one code and one remedy in one domain, in their order."""

    findings: tuple[Finding, ...]

    @property
    def code(self) -> str:
        return self.findings[0].code

    @property
    def severity(self) -> str:
        return self.findings[0].severity

    @property
    def remedy(self) -> str:
        return self.findings[0].remedy

    @property
    def subject(self) -> str:
        """What it is about: a file, a domain, or how many volumes and the first of them."""
        first = self.findings[0]
        where = f"domain {first.domain}" if first.domain else ""
        if len(self.findings) == 1:
            return first.file or where or "the domains"
        count = f"{len(self.findings)} volumes" + (f" of {where}" if where else "")
        # If each volume has its own message, its name is in there.
        return count if self._unlike else f"{count} ({self._few(_name(s) for s in self.findings)})"

    @property
    def message(self) -> str:
        """What was found: each message with its count, or the messages of the first volumes."""
        counted = Counter(finding.message for finding in self.findings)
        if (merged := _with_ranges(list(counted))) is not None:
            return merged
        if self._unlike:
            return self._few((f"{_name(s)}: {s.message}" for s in self.findings), between="; ")
        return "; ".join(f"{message} ({count})" for message, count in counted.most_common())

    @property
    def _unlike(self) -> bool:
        messages = {finding.message for finding in self.findings}
        return len(messages) > _MESSAGES and _with_ranges(list(messages)) is None

    def _few(self, parts: Iterable[str], between: str = ", ") -> str:
        more = len(self.findings) - _NAMES
        return between.join(islice(parts, _NAMES)) + (f"{between}and {more} more" if more > 0 else "")

    @property
    def each(self) -> tuple[tuple[str, str], ...]:
        """File and finding of every volume, where there are several."""
        return tuple((s.file, s.message) for s in self.findings) if len(self.findings) > 1 else ()

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}. {self.remedy}"


def _with_ranges(messages: Sequence[str]) -> str | None:
    """Messages that differ in numbers alone as one, "183 to 203 cm2"; None where they differ in more."""
    if len(messages) == 1:
        return messages[0]
    # A number in the name of a file is none.
    if len({_NUMBER.sub("#", message) for message in messages}) > 1 or any("/" in message for message in messages):
        return None
    ends = [
        min(values, key=float) + (f" to {max(values, key=float)}" if len(set(values)) > 1 else "")
        for values in zip(*(_NUMBER.findall(message) for message in messages), strict=True)
    ]
    numbers = iter(ends)
    return _NUMBER.sub(lambda _: next(numbers), messages[0])


def _name(finding: Finding) -> str:
    return Path(finding.file).name


def kinds(findings: Iterable[Finding]) -> list[Kind]:
    """Group what is of one code, domain and remedy; in order of the first of each."""
    found: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        found.setdefault((finding.code, finding.domain, finding.remedy), []).append(finding)
    return [Kind(tuple(volumes)) for volumes in found.values()]
