"""The page of an inspection: findings, every volume with a picture, and the rules that were checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from medcyclegan import __version__
from medcyclegan.atomic import atomic_file
from medcyclegan.qc.kinds import kinds
from medcyclegan.qc.rules import RULES, SEVERITIES, Finding, Volume
from medcyclegan.report.page import environment
from medcyclegan.survey.volume import PERCENTILES

COLUMNS = (
    "volume",
    "shape",
    "spacing mm",
    "axes",
    "tilt °",
    "stored",
    f"values at {', '.join(f'{p} %' for p in PERCENTILES)}",
    "body mm",
)
_MOST_THUMBNAILS = 300


def cells(volume: Volume) -> tuple[str, ...]:
    """A volume's row under `COLUMNS`; "–" where nothing is known."""
    survey = volume.survey

    def numbers(values: Iterable[float] | None, digits: str = ".3g", between: str = " x ") -> str:
        return between.join(format(value, digits) for value in values) if values else "–"

    return (
        str(survey.file),
        numbers(survey.grid.shape if survey.grid else None, "d"),
        numbers(survey.spacing),
        survey.axes or "–",
        "–" if survey.tilt_degrees is None else f"{survey.tilt_degrees:.0f}",
        survey.stored or "–",
        numbers(survey.percentiles, ".4g", ", "),
        numbers(survey.anatomy.extent_mm if survey.anatomy else None, ".0f"),
    )


def write_page(path: Path, volumes: Sequence[Volume], findings: Sequence[Finding], facts: Mapping[str, str]) -> None:
    """Write one self-contained HTML page, atomically; everything given is escaped.

    Args:
        path: the file.
        volumes: in the order to be shown.
        findings: errors first.
        facts: name to value, at the top.
    """
    found: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        found[finding.domain, finding.file].append(finding)
    own = [found[volume.domain, str(volume.survey.file)] for volume in volumes]

    def rank(index: int) -> int:
        return SEVERITIES.index(own[index][0].severity) if own[index] else len(SEVERITIES)

    drawn = set(sorted(range(len(volumes)), key=rank)[:_MOST_THUMBNAILS])
    entries = [
        {
            "domain": volume.domain,
            "cells": cells(volume),
            "worst": own[index][0].severity if own[index] else "",
            "remarks": [finding.message for finding in own[index]],
            "thumbnail": volume.survey.thumbnail if index in drawn else b"",
        }
        for index, volume in enumerate(volumes)
    ]
    pictures = sum(bool(entry["thumbnail"]) for entry in entries)
    note = f"{pictures} of {len(volumes)} volumes are shown, those with errors first."
    text = (
        environment()
        .get_template("inspection.html")
        .render(
            facts=facts,
            rows=kinds(findings),
            columns=COLUMNS,
            volumes=entries,
            rules={code: (rule.severity, rule.criterion) for code, rule in RULES.items()},
            note=note if len(drawn) < len(volumes) else "",
            version=__version__,
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )
    )
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
