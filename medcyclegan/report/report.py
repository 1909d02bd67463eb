"""One self-contained HTML page about a run or an evaluation: facts, tables, curves and pictures of cases.

Pictures travel inside the page, nothing is fetched and nothing is executed, so the file can be mailed, archived and
printed as it is.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import jinja2

from medcyclegan import __version__
from medcyclegan.atomic import atomic_file
from medcyclegan.evaluation.evaluate import Evaluation

Cell = str | float | int | None

# Column headings with their unit and the direction of better.
HEADINGS = {
    "mae": "MAE [HU] ↓",
    "psnr": "PSNR [dB] ↑",
    "ssim": "SSIM ↑",
    "ms_ssim": "MS-SSIM ↑",
    "me": "ME [HU] → 0",
    "mae_bone": "MAE bone [HU] ↓",
}


@dataclass(frozen=True)
class Table:
    """A table to be shown.

    Attributes:
        columns: headings.
        rows: one cell per column; floats are shown with four digits, nan as "undefined", None as "–".
        foot: rows below a line, such as means.
        notes: sentences below the table.

    Raises:
        ValueError: a row's length is not that of the headings.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: tuple[tuple[Cell, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in (*self.rows, *self.foot):
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")


def scores_table(evaluation: Evaluation) -> Table:
    """The scores of every case, mean and standard deviation over the cases, and every doubt and failure as a note."""
    protocol, summary = evaluation.protocol, evaluation.summary
    rows: list[tuple[Cell, ...]] = [
        (name, *(case.scores[metric].value for metric in protocol.metrics)) for name, case in evaluation.cases.items()
    ]
    rows += [(name, *(None for _ in protocol.metrics)) for name in evaluation.failed]
    foot = [
        (label, *(summary["metrics"][metric][statistic] for metric in protocol.metrics))
        for label, statistic in (("mean", "mean"), ("standard deviation", "sd"))
    ]
    notes = [
        f"Protocol {protocol.name}, {protocol.low:g} to {protocol.high:g} HU, mask: "
        f"{'the body of each reference' if summary['mask'] == 'body' else 'as given'}. "
        f"{summary['n']} scored, {summary['n_failed']} failed. In published comparisons the choice of registration "
        "alone moved MAE by 3 to 8 HU: smaller differences are not a model's merit."
    ]
    for metric in protocol.metrics:
        undefined = summary["metrics"][metric]["n_undefined"]
        if undefined:
            notes.append(f"{HEADINGS[metric]}: mean and deviation leave out {undefined} case(s) without a value.")
        if reason := summary["metrics"][metric]["reasons"].get("mean"):
            notes.append(f"{HEADINGS[metric]}: no mean ({reason}).")
    notes += [f"{name}: {note}" for name, case in evaluation.cases.items() for note in case.notes]
    notes += [f"{name} failed: {reason}" for name, reason in evaluation.failed.items()]
    return Table(("case", *(HEADINGS[metric] for metric in protocol.metrics)), tuple(rows), tuple(foot), tuple(notes))


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    facts: Mapping[str, str],
    table: Table,
    baselines: Table | None = None,
    cases: Sequence[tuple[str, bytes, str]] = (),
    curves: bytes | None = None,
) -> None:
    """Write the page, atomically.

    Args:
        path: the .html file.
        title: heading of the page.
        facts: name to value: data, model, versions, settings.
        table: the scores.
        baselines: the same metrics for trivial methods, to compare with.
        cases: (case id, PNG, caption) of each picture, see `medcyclegan.report.figures.case_panel`.
        curves: PNG of the training curves.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medcyclegan.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "embedded": _embedded}
    page = environment.get_template("template.html").render(
        title=title,
        facts=facts,
        table=table,
        baselines=baselines,
        cases=cases,
        curves=curves,
        version=__version__,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | int):
        return str(value)
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}".removesuffix(".")
    return "−" + rounded[1:] if rounded.startswith("-") else rounded


def _embedded(png: bytes) -> str:
    """A data address of the picture."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
