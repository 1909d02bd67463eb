"""Which prediction belongs to which reference: by case id, never by order.

The rule. A file belongs to the reference whose id is exactly its own. Failing that, one of the known suffixes is
removed from either id: `p01_sct`, `p01_ct`, `p01_mr` and `p01_mask` all mean the case `p01`. Anything ambiguous or left
over is refused, with every name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from medcyclegan.errors import raise_all

SUFFIXES = ("_sct", "_ct", "_mr", "_mask")


def pair(references: Iterable[str], others: Iterable[str], kind: str, *, spare_allowed: bool = False) -> dict[str, str]:
    """One of `others` for every reference.

    Args:
        references: case ids of the references.
        others: case ids of the predictions or masks.
        kind: what `others` are, in the singular, for messages: "prediction" or "mask".
        spare_allowed: accept `others` that belong to no reference.

    Returns:
        From reference id to the id of its counterpart, in the order of `references`.

    Raises:
        InputError: a reference without a counterpart, a counterpart without a reference unless `spare_allowed`, or an
            ambiguous one; all of them are listed.
    """
    references, others = list(references), list(others)
    candidates = {other: _belongs_to(other, references) for other in others}
    claims: dict[str, list[str]] = defaultdict(list)
    problems = []
    for other, matches in candidates.items():
        if not matches and not spare_allowed:
            problems.append(f"{kind} '{other}' belongs to no reference")
        if len(matches) > 1:
            problems.append(f"{kind} '{other}' may belong to any of the references {_quoted(matches)}")
        for reference in matches:
            claims[reference].append(other)
    for reference in references:
        if not claims[reference]:
            problems.append(f"reference '{reference}' has no {kind}")
        if len(claims[reference]) > 1:
            problems.append(f"reference '{reference}' is matched by more than one {kind}: {_quoted(claims[reference])}")
    raise_all(
        problems,
        f"Cases are paired by name: '<case>' exactly, or '<case>' with one of {', '.join(SUFFIXES)}. "
        "Rename or remove these files:",
    )
    return {reference: claims[reference][0] for reference in references}


def _belongs_to(other: str, references: list[str]) -> list[str]:
    if other in references:
        return [other]
    return [reference for reference in references if _case(reference) == _case(other)]


def _case(identifier: str) -> str:
    for suffix in SUFFIXES:
        if identifier.endswith(suffix) and identifier != suffix:
            return identifier.removesuffix(suffix)
    return identifier


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
