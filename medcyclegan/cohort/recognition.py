"""Detect what kind of data is at a path, so that one argument names all data.

A *prepared folder* is what `medcyclegan prepare` wrote, a *datalist* a JSON file with the lists a and b, a *layout* a
folder in one of the conventions of `layouts`, or a table (CSV) that lists its volumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from medcyclegan.cohort.layouts import fitting, no_data
from medcyclegan.errors import raise_all
from medcyclegan.io.tree import Tree

RECORD = "prepared.json"  # of a prepared folder


class Kind(Enum):
    """The kinds of data."""

    PREPARED = "a prepared folder"
    DATALIST = "a datalist"
    LAYOUT = "a folder or table in a layout"


# Which data an option belongs to.
OPTIONS = {"fold": Kind.DATALIST, **dict.fromkeys(("layout", "contrast_a", "contrast_b", "patient"), Kind.LAYOUT)}
FILES = {".json": Kind.DATALIST, ".csv": Kind.LAYOUT}


def recognize(path: Path, options: Mapping[str, object] | None = None) -> Kind:
    """The kind of data at a path. Whether a folder fits a layout is checked when it is read.

    Args:
        path: what is given as data.
        options: how it is to be read, by the keys of `OPTIONS`; None is as if it were left out.

    Raises:
        InputError: it is none of the kinds, which are listed then, or an option is given that belongs to another kind.
    """
    if path.is_dir():
        kind = Kind.PREPARED if (path / RECORD).is_file() else Kind.LAYOUT
    elif not path.exists():
        raise no_data(path, "it does not exist")
    elif path.suffix.lower() not in FILES:
        raise no_data(path, "it is a file of another kind")
    else:
        kind = FILES[path.suffix.lower()]
    misplaced = [name for name, value in (options or {}).items() if value is not None and OPTIONS[name] is not kind]
    raise_all(
        [f"{name} is for {OPTIONS[name].value}" for name in misplaced],
        f"{path} is {kind.value}; leave out what is for other data:",
    )
    return kind


def is_cohort(path: Path) -> bool:
    """True of data with two domains, False of a volume and of a folder that holds just volumes."""
    if path.is_dir():
        return (path / RECORD).is_file() or bool(fitting(Tree(path)))
    return path.suffix.lower() in FILES
