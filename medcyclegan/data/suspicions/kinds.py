"""Suspicions of one kind, told once: how many volumes, the first names, what was found and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from medcyclegan.data.suspicions.rules import Suspicion

_NAMES = 3  # that are told; the rest is counted
_MESSAGES = 3  # different ones that are told


@dataclass(frozen=True)
class Kind:
    """Suspicions of one code and one remedy in one domain, in their order."""

    suspicions: tuple[Suspicion, ...]

    @property
    def code(self) -> str:
        return self.suspicions[0].code

    @property
    def severity(self) -> str:
        return self.suspicions[0].severity

    @property
    def remedy(self) -> str:
        return self.suspicions[0].remedy

    @property
    def subject(self) -> str:
        """What it is about: a file, a domain, or how many volumes and the first of them."""
        first = self.suspicions[0]
        where = f"domain {first.domain}" if first.domain else ""
        if len(self.suspicions) == 1:
            return first.file or where or "the domains"
        told = f"{len(self.suspicions)} volumes" + (f" of {where}" if where else "")
        # Where each has its own finding, its name stands there.
        return told if self._unlike else f"{told} ({self._few(_name(s) for s in self.suspicions)})"

    @property
    def message(self) -> str:
        """What was found: of volumes that differ in it how many have which, or of the first ones each."""
        counted = Counter(suspicion.message for suspicion in self.suspicions)
        if self._unlike:
            return self._few((f"{_name(s)}: {s.message}" for s in self.suspicions), between="; ")
        if len(counted) == 1:
            return next(iter(counted))
        return "; ".join(f"{message} ({count})" for message, count in counted.most_common())

    @property
    def _unlike(self) -> bool:
        return len({suspicion.message for suspicion in self.suspicions}) > _MESSAGES

    def _few(self, told: Iterable[str], between: str = ", ") -> str:
        more = len(self.suspicions) - _NAMES
        return between.join(islice(told, _NAMES)) + (f"{between}and {more} more" if more > 0 else "")

    @property
    def each(self) -> tuple[tuple[str, str], ...]:
        """File and finding of every volume, where there are several."""
        return tuple((s.file, s.message) for s in self.suspicions) if len(self.suspicions) > 1 else ()

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}. {self.remedy}"


def _name(suspicion: Suspicion) -> str:
    return Path(suspicion.file).name


def kinds(suspicions: Iterable[Suspicion]) -> list[Kind]:
    """Group what is of one code, domain and remedy; in order of the first of each."""
    found: dict[tuple[str, str, str], list[Suspicion]] = {}
    for suspicion in suspicions:
        found.setdefault((suspicion.code, suspicion.domain, suspicion.remedy), []).append(suspicion)
    return [Kind(tuple(members)) for members in found.values()]
