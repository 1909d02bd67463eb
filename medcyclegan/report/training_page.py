"""The page about a training: its settings, its curves, and its pictures step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medcyclegan.report import plots
from medcyclegan.report.display import window_words
from medcyclegan.report.page import About, Cell, Page, Slide, Stack, Table, Training
from medcyclegan.report.training_run import TrainingRun
from medcyclegan.transforms.intensity import DISPLAY_HU


def training_page(run: TrainingRun, about: About) -> Page:
    """A page about a training alone."""
    title = about.title or " ".join(["Training", *_direction(run)])
    return Page(title, {**about.facts, **_run_facts(run)}, training=training_part(run))


def _run_facts(run: TrainingRun) -> dict[str, str]:
    training, model = _part(run.config, "training"), _part(run.config, "model")
    done = next(iter(run.losses.values()))[0][-1]
    planned = training.get("steps")
    facts = {"Steps": f"{done:.0f} of {planned}" if planned else f"{done:.0f}"}
    if run.seconds is not None:
        facts["Time"] = f"{run.seconds:.0f} s since it was started or last resumed"
    if not run.config:
        facts["Settings"] = "config.yaml was not found"
    for label, found, keys in (
        ("Objective", _part(run.config, "objective"), ("_target_", "cycle_weight", "identity_weight")),
        ("Generator", _part(model, "generator"), None),
        ("Discriminator", _part(model, "discriminator"), None),
        ("Preparation", _part(run.config, "preparation"), None),
        ("Patches", _part(run.config, "patches"), None),
        ("Optimization", training, ("batch_size", "learning_rate", "betas", "decay_start", "ema_decay", "precision")),
    ):
        words = [f"{key.strip('_').replace('_', ' ')} {_plain(found[key])}" for key in (keys or found) if key in found]
        if words:
            facts[label] = ", ".join(words).replace("target ", "", 1)
    if "seed" in run.config:
        facts["Seed"] = str(run.config["seed"])
    return facts


def _direction(run: TrainingRun) -> list[str]:
    """ "from MR to CT", as far as it is known."""
    names = [_part(_part(run.config, "domains"), domain).get("name") for domain in ("a", "b")]
    return [f"from {names[0]} to {names[1]}"] if all(names) else []


def _plain(value: Any) -> str:
    if value is None:
        return "no"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " / ".join(_plain(entry) for entry in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def training_part(run: TrainingRun) -> Training:
    """The part of a page about a training."""
    series = [(f"validation {name}", values) for name, values in run.validation.items()] + [*run.losses.items()]
    rows: list[tuple[Cell, ...]] = [(name, *_course(*values)) for name, values in series]
    curves = [("Losses and speed, means over the steps between two lines of the log.", plots.curves(run.losses))]
    notes = [
        "Adversarial losses have no value that is best: a generator and its discriminator hold each other in check."
    ]
    if run.validation:
        what = (
            "Validation on the pairs that were kept apart." if "mae" in run.validation else "Validation without pairs."
        )
        curves.insert(0, (what, plots.curves(run.validation)))
    if "mae" not in run.validation:
        notes.insert(0, "The run has no validation pairs, so nothing here measures the error of the result.")
    columns = ("value", "first", "last", "smallest", "at step")
    table = Table("Course of the training", columns, tuple(rows), tuple(notes))
    return Training(table, tuple(curves), _warnings(run), _panels(run), _panels_caption(run))


def _warnings(run: TrainingRun) -> Table | None:
    if not run.warnings:
        return None
    return Table(
        "What the guards of the training said",
        ("step", "guard", "what it saw", "what it did", "what to try"),
        tuple((w.step, w.guard, w.saw, w.did, w.remedy or None) for w in run.warnings),
        prose=True,
    )


def _course(steps: Sequence[float], values: Sequence[float]) -> tuple[Cell, ...]:
    """First, last and smallest value, and the step of the smallest."""
    finite = [(value, step) for value, step in zip(values, steps, strict=True) if math.isfinite(value)]
    smallest, at = min(finite) if finite else (math.nan, math.nan)
    return values[0], values[-1], smallest, f"{at:.0f}"


def _panels(run: TrainingRun) -> Stack | None:
    if not run.pictures or run.size is None:
        return None
    slides = tuple(
        Slide(picture.webp, f"step {picture.step}", f"Panel of pictures at step {picture.step}")
        for picture in run.pictures
    )
    return Stack("Pictures", "Step of the training", slides, len(slides) - 1, *run.size)


def _panels_caption(run: TrainingRun) -> str:
    domains = _part(run.config, "domains")
    a, b = (str(_part(domains, name).get("name", name.upper())) for name in ("a", "b"))
    shown = len(run.pictures)
    more = f" {shown} of {run.picture_count} panels are shown." if shown < run.picture_count else ""
    return (
        f"The same slices at every step, in pairs of rows. Upper row: real {a}, {b} made of it, and {a} made back of "
        f"that. Lower row: real {b}, {a} made of it, and {b} made back of that. The patient's right is at the "
        f"left.{_look(run)}{more}"
    )


def _look(run: TrainingRun) -> str:
    """The gray scale of the pictures, as far as the config gives it."""
    modalities = [_part(_part(run.config, "domains"), name).get("modality") for name in ("a", "b")]
    preparation = _part(run.config, "preparation")
    words = ""
    if "CT" in modalities:
        low, high = preparation.get("ct_window") or DISPLAY_HU
        words += f" CT at {window_words((max(low, DISPLAY_HU[0]), min(high, DISPLAY_HU[1])))}."
    if "MR" in modalities:
        inverted = preparation.get("mr_inverted")
        inverted = "CT" in modalities if inverted is None else inverted
        words += f" MR as the networks see it{', dark and bright exchanged' if inverted else ''}."
    return words
