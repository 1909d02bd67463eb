"""Docstrings as reStructuredText.

They are written to be read in the source, with shapes as (B, *spatial), |x| and indented blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# What keeps its meaning: code in backticks, and words between two asterisks.
KEPT = re.compile(r"(`[^`]*`|(?<![\w*])\*[^\W\d][\w -]*\*(?![\w*]))")


def as_rst(lines: Iterable[str]) -> list[str]:
    """Escape what would be taken for markup; what is indented after an empty line becomes a literal block."""
    result: list[str] = []
    above, literal = 0, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip() or line.lstrip().startswith((">>>", "...")):
            result.append(line)
            continue
        after_gap = bool(result) and not result[-1].strip()
        literal = literal and indent > above
        if not literal and after_gap and indent > above and any(text.strip() for text in result):
            result += [" " * above + "::", ""]
            literal = True
        if literal:
            result.append(line)
            continue
        above = indent
        parts = KEPT.split(line)
        parts[::2] = [re.sub(r"([*|]|(?<=\w)_\b(?!\w))", r"\\\1", part) for part in parts[::2]]
        result.append("".join(parts))
    return result
