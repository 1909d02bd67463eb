"""The page of an inspection: what is suspicious, every volume with a picture, and what was looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from medcyclegan import __version__
from medcyclegan.atomic import atomic_file
from medcyclegan.report.page import environment


@dataclass(frozen=True)
class Row:
    """One kind of finding: "error", "warning" or "note", what it is about, what was found and what to do.

    Where it is about several volumes, `each` has the file and what was found of every one.
    """

    severity: str
    subject: str
    message: str
    remedy: str
    each: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class VolumeEntry:
    """One volume.

    Attributes:
        domain: "a", "b" or empty.
        cells: one per column, the volume's name first.
        worst: the highest severity of what is suspected of it; empty for nothing.
        remarks: what is suspected of it.
        thumbnail: WebP; empty for none.
    """

    domain: str
    cells: tuple[str, ...]
    worst: str
    remarks: tuple[str, ...]
    thumbnail: bytes


def write_inspection_page(
    path: Path,
    facts: Mapping[str, str],
    rows: Sequence[Row],
    columns: Sequence[str],
    volumes: Sequence[VolumeEntry],
    rules: Mapping[str, tuple[str, str]],
    note: str = "",
) -> None:
    """Write one self-contained HTML page, atomically; everything given is escaped.

    Args:
        path: the file.
        facts: name to value, at the top.
        rows: findings in the order to be shown.
        columns: headings of the volumes' cells.
        volumes: in the order to be shown.
        rules: code of a finding -> severity and criterion.
        note: below the heading of the pictures.
    """
    text = (
        environment()
        .get_template("inspection.html")
        .render(
            facts=facts,
            rows=rows,
            columns=columns,
            volumes=volumes,
            rules=rules,
            note=note,
            version=__version__,
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )
    )
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
