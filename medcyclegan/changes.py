"""Differences between a run's experiment and the settings to resume it with.

A *key* is a path such as "training.steps". Values are plain data, as in YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medcyclegan.errors import InputError, raise_all

# What may change on resuming: weights, optimizers and pools stay valid. Other changes need a new training.
CHANGEABLE = ("training.", "augmentation.", "data.source")
_ABSENT = "(not given)"


@dataclass(frozen=True)
class Change:
    """One key with a changed value."""

    key: str
    old: Any
    new: Any

    @property
    def allowed(self) -> bool:
        """Whether a run can go on with it."""
        return self.key.startswith(CHANGEABLE)

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def changes(resolved: Mapping[str, Any], given: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every key of `new` that differs from both the given and the resolved experiment.

    Args:
        resolved: the run's experiment, with everything filled in that its data decided.
        given: the experiment that its user gave, before that.
        new: the one to go on with. Names of data that it leaves out are taken as unchanged.
    """
    before, asked, after = _flat(resolved), _flat(given), _flat(new)
    if not any(value is not None for key, value in after.items() if key.startswith("data.")):
        after |= {key: value for key, value in asked.items() if key.startswith("data.")}
    # The data is what the run was given as a whole, or what was made of it as a whole, never a mixture.
    for known in (before, asked):
        if all(after.get(key) == value for key, value in known.items() if key.startswith("data.")):
            after |= {key: value for key, value in before.items() if key.startswith("data.")}
            break
    found = []
    for key in sorted(before.keys() | after.keys()):
        old, value = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if value != old and not (not key.startswith("data.") and value == asked.get(key, _ABSENT)):
            found.append(Change(key, old, value))
    return found


def require_allowed(found: Sequence[Change], run: str, *, allow: bool) -> None:
    """Refuse changes that are impossible on resuming, and possible ones without `allow`.

    Raises:
        InputError: naming every change.
    """
    fixed = [str(change) for change in found if not change.allowed]
    raise_all(
        fixed,
        f"{run} cannot go on with another experiment; what may change is training, augmentation and data.source, but "
        "these differ (train a new run for them):",
    )
    if found and not allow:
        lines = "\n  - ".join(["", *map(str, found)])
        raise InputError(
            f"{run} was trained with other settings than those given now:{lines}\n",
            "Leave them out to go on as before, or give --allow-changes to go on with the new ones.",
        )


def replaced(resolved: Mapping[str, Any], found: Sequence[Change]) -> dict[str, Any]:
    """The run's experiment with the changes made."""
    result = _copied(resolved)
    for change in found:
        *parents, last = change.key.split(".")
        section = result
        for parent in parents:
            section = section[parent]
        if change.new == _ABSENT:
            section.pop(last, None)
        else:
            section[last] = change.new
    return result


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat


def _copied(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in content.items()}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
