"""Headers of text, as MetaImage and NRRD have them: named fields, and the data files that they name."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from medcyclegan.errors import InputError
from medcyclegan.io.stored import header_error

_LONGEST_HEADER = 1 << 20  # bytes
# NaN and infinity are for voxels only.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
# A slice each, and far more than a volume has: a header can name any number.
_MOST_FILES = 100_000


@dataclass
class TextHeader:
    """A header; every method raises an `InputError` that names the field where it cannot answer.

    Attributes:
        path: of its file.
        fields: name -> value, as it stands there.
        end: the first byte behind the header.
        listed: the lines that follow a field `LIST`: names of data files.
    """

    path: Path
    fields: dict[str, str] = field(default_factory=dict)
    end: int = 0
    listed: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The lines of the file, as long as they may belong to a header; `end` follows them."""
        with self.path.open("rb") as stream:
            start = stream.read(_LONGEST_HEADER)
        for line in io.BytesIO(start):
            self.end += len(line)
            yield line.decode("utf-8", "surrogateescape")

    def refusal(self, problem: str, remedy: str | None = None) -> InputError:
        """As `header_error`, of this file."""
        return header_error(self.path, problem, remedy)

    def text(self, name: str, default: str | None = None) -> str:
        """A field, which must be there unless it has a default."""
        found = self.fields.get(name, default)
        if found is None:
            raise self.refusal(f"has no '{name}'")
        return found

    def numbers(self, name: str, count: int, default: str | None = None) -> list[float]:
        """Exactly `count` finite numbers, separated by spaces."""
        return self.numbers_of(self.text(name, default), count, name)

    def numbers_of(self, text: str, count: int, name: str) -> list[float]:
        """As `numbers`, of a part of the field `name`."""
        words = text.split()
        values = [float(word) if _NUMBER.fullmatch(word) else math.nan for word in words]
        if len(values) != count or not all(map(math.isfinite, values)):
            raise self.refusal(f"gives {name} as {_short(text)}; {count} numbers are needed")
        return values

    def integer(self, name: str, default: str | None = None) -> int:
        """One whole number."""
        return self.integers(name, 1, default)[0]

    def integers(self, name: str, count: int, default: str | None = None) -> list[int]:
        """Exactly `count` whole numbers, separated by spaces."""
        return self.integers_of(self.text(name, default), count, name)

    def integers_of(self, text: str, count: int | None, name: str) -> list[int]:
        """As `integers`, of a part of the field `name`; with `count` None any number of them."""
        words = text.split()
        if not all(map(_INTEGER.fullmatch, words)) or (count is not None and len(words) != count):
            wanted = f"{count} whole number{'s' * (count != 1)}" if count is not None else "whole numbers"
            raise self.refusal(f"gives {name} as {_short(text)}; {wanted} needed")
        return [int(word) for word in words]

    def beside(self, named: str) -> Path:
        """A data file that the header names, in the header's folder or below it."""
        steps = PureWindowsPath(named)  # knows the separators and roots of every system
        if not named or "\0" in named or steps.anchor or ".." in steps.parts:
            raise self.refusal(
                f"looks for the data in {named!r}; only files beside the header are read",
                "Put the data beside the header and name them without a folder.",
            )
        path = self.path.parent / named
        if path == self.path:
            raise self.refusal("names itself as the file of its data")
        return path

    def numbered_files(self, pattern: str, chosen: Sequence[int]) -> list[Path]:
        """The files of a pattern such as `slice_%03d.raw`, as C's printf writes it for whole numbers."""
        found = re.fullmatch(r"([^%]*)%(0?)(\d{0,2})[di]([^%]*)", pattern)
        if not found:
            raise self.refusal(f"names its data files by {pattern!r}; one %d or %03d is needed")
        if len(chosen) > _MOST_FILES:
            raise self.refusal(f"names {len(chosen)} data files; up to {_MOST_FILES} are read")
        before, zero, width, after = found.groups()
        return [self.beside(f"{before}{number:{zero}{width}d}{after}") for number in chosen]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
