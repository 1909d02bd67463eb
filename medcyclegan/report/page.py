"""One self-contained HTML page: tables, plots and scrollable slices as text and embedded pictures.

Style, script and pictures are inside the page, and its security policy forbids the browser to load anything else. It
can be mailed, archived and printed as it is.
"""

from __future__ import annotations

import base64
import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import jinja2
import matplotlib as mpl

from medcyclegan import __version__
from medcyclegan.report.plots import Plot
from medcyclegan.report.viewer import Column

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table to be shown; its first column names the rows.

    Attributes:
        caption: what the table says.
        columns: headings.
        rows: one cell per column; floats are shown with four digits, nan as "undefined", None as "–".
        notes: sentences below the table.
        links: anchor of a row, without "#", for the rows that have one.
        prose: whether cells hold sentences, which are wrapped; else they hold values, which are aligned.
        sortable: whether a click on a heading sorts the rows.

    Raises:
        ValueError: a row's length is not that of the headings.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    links: Mapping[int, str] = field(default_factory=dict)
    prose: bool = False
    sortable: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")


@dataclass(frozen=True)
class Headline:
    """One of the few scores that a reader looks at first.

    Attributes:
        label: with unit and direction.
        value: its mean over the cases, as shown.
        interval: of the mean, as shown; empty where there is none.
        beside: what it is compared with -> its mean, as shown.
    """

    label: str
    value: str
    interval: str
    beside: Mapping[str, str]


@dataclass(frozen=True)
class Slide:
    """One picture of a stack that is scrolled.

    Attributes:
        data: WebP.
        label: where in the stack it is, for people: "k 37 · z +34 mm".
        words: what it shows, for those who do not see it.
    """

    data: bytes
    label: str
    words: str


@dataclass(frozen=True)
class Stack:
    """Pictures of one size, of which one is seen at a time.

    Attributes:
        title: above the stack.
        name: of the slider, for those who do not see it.
        slides: at least one.
        start: index of the one seen first.
        width: pixels.
        height: pixels.
        letters: of the left, right, top and bottom edge of every column; empty strings show none.
        marks: index -> word for a slide that stands out.
    """

    title: str
    name: str
    slides: tuple[Slide, ...]
    start: int
    width: int
    height: int
    letters: tuple[str, str, str, str] = ("", "", "", "")
    marks: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseSection:
    """One case to be opened.

    Attributes:
        anchor: within the page.
        name: as the user named it.
        badge: such as "worst"; empty for most.
        scores: short words, such as "MAE 61.2 HU".
        columns: of its pictures, with their scales; empty if there are no pictures, then `notes` say why.
        stacks: its pictures, a stack per plane.
        notes: doubts and reasons.
    """

    anchor: str
    name: str
    badge: str
    scores: str
    columns: tuple[Column, ...]
    stacks: tuple[Stack, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """The part of a page about a training.

    Attributes:
        table: first, last and smallest values.
        curves: caption and plot.
        warnings: of its guards; None if there were none.
        panels: pictures by step; None if there are none.
        panels_caption: how to read them.
    """

    table: Table
    curves: tuple[tuple[str, Plot], ...]
    warnings: Table | None
    panels: Stack | None
    panels_caption: str


@dataclass(frozen=True)
class About:
    """Title and facts of a page besides the results.

    Attributes:
        title: heading of the page; None for the usual one.
        facts: name to value: data, model, settings; shown before those of the results.
        run: folder of the training that made the model, shown at the end; of an evaluation only.
    """

    title: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    run: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class Page:
    """The content of a page; empty parts are left out.

    Attributes:
        title: heading of the page.
        facts: name to value.
        alerts: important messages, shown first.
        headlines: the scores that are looked at first.
        basis: what they are averaged over, in a sentence.
        headline_notes: how to read them.
        summary: statistics over the cases, of every score.
        distributions: of the first scores over the cases, with a caption.
        other_distributions: of the others.
        range_errors: by gantry angle, with a caption.
        tissues: scores per tissue.
        densities: heading, plot and caption of what pools all voxels; empty if no volume could be opened.
        per_case: every score of every case; None for a training.
        doubts: notes of the evaluation, one sentence each.
        cases: those that stand out, such as the worst.
        other_cases: the others.
        cases_caption: how to read the pictures.
        training: of the model.
    """

    title: str
    facts: Mapping[str, str]
    alerts: tuple[str, ...] = ()
    headlines: tuple[Headline, ...] = ()
    basis: str = ""
    headline_notes: tuple[str, ...] = ()
    summary: Table | None = None
    distributions: tuple[Plot, str] | None = None
    other_distributions: tuple[Plot, str] | None = None
    range_errors: tuple[Plot, str] | None = None
    tissues: Table | None = None
    densities: tuple[tuple[str, Plot, str], ...] = ()
    per_case: Table | None = None
    doubts: tuple[str, ...] = ()
    cases: tuple[CaseSection, ...] = ()
    other_cases: tuple[CaseSection, ...] = ()
    cases_caption: str = ""
    training: Training | None = None


def render(page: Page) -> str:
    """The page as HTML; everything given is escaped."""
    return (
        environment()
        .get_template("template.html")
        .render(page=page, version=__version__, written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    )


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this package with their filters; everything is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medcyclegan.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": cell,
        "sorted_by": _sorted_by,
        "embedded": _embedded,
        "gradient": _gradient,
        "scale": _end,
    }
    return environment


def cell(value: Cell) -> str:
    """A value as shown in a table: four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, str | int):
        return str(value)
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    rounded = f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}".removesuffix(".")
    return "−" + rounded[1:] if rounded.startswith("-") else rounded


def _sorted_by(value: Cell) -> str:
    """The sort key of a cell: a number in full precision, or nothing without a value."""
    return "" if value is None or isinstance(value, str) or math.isnan(value) else repr(float(value))


def _embedded(webp: bytes) -> str:
    """A data address of the picture."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode("ascii")


@functools.cache
def _gradient(colors: str) -> str:
    """A color map as a CSS gradient, from low to high."""
    stops = [mpl.colors.to_hex(mpl.colormaps[colors](n / 10)) for n in range(11)]
    return f"linear-gradient(to right, {', '.join(stops)})"


def _end(value: float) -> str:
    """An end of a scale: whole numbers whole, others with three digits."""
    text = f"{value:.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")
