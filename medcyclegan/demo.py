"""The whole workflow on phantom patients in about five minutes: make, prepare, train, convert, evaluate, report.

The time of a training step differs between processors by a factor of ten. The demo times a few steps on this machine
and trains as many as the minutes allow, at most the number in `EXPERIMENT`.

The training volumes are of different phantoms and unpaired; the test phantoms are paired, so the truth is known. Three
baselines are printed beside the score: the best constant and the best table from MR intensity to HU, both fitted to the
reference of each case, and the untrained network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcyclegan import config, factory, phantom
from medcyclegan.convert import Options, convert
from medcyclegan.errors import InputError
from medcyclegan.evaluation.evaluate import evaluate
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.io.reader import read_volume
from medcyclegan.progress import Progress, Silent, duration
from medcyclegan.report.baselines import mean_of
from medcyclegan.report.report import About, write_report

SPACING_MM = (3.0, 3.0, 4.0)
TRAINING_HEADS = 16  # of each modality; they take seconds, and fewer would be overfitted
EXPERIMENT: dict[str, Any] = {
    "preparation": {"spacing": SPACING_MM},
    "patches": {"size": [72, 88], "flip": True, "matching": "vertex"},
    # Skip connections learn borders in minutes; a wide discriminator would take longer to become useful.
    "model": {
        "generator": {"_target_": "attention_unet", "filters": 16, "depth": 3, "gates": False},
        "discriminator": {"filters": 16, "layers": 3},
    },
    "losses": {"structure": [{"_target_": "mask_consistency", "rim": 2}]},
    "training": {
        "steps": 3000,
        "learning_rate": 4e-4,
        "ema_decay": 0.995,  # an average over about 200 steps; the default's 1000 would lag behind so short a training
        "picture_every": 1000,
        "checkpoint_every": 1000,
    },
}
MINUTES = 5.0  # in all, by default
LEAST_STEPS = 200  # fewer show nothing
TIMED_S = 6.0  # of training steps that are timed
# Seconds of a step in the training per second of a timed one: it also draws patches, averages weights and writes.
OVERHEAD = 1.1
# Seconds of validation, conversion, scores and report per second of making and preparing the phantoms.
AFTERWARDS = 1.5


@dataclass(frozen=True)
class Length:
    """How long the demo trains, and why.

    Attributes:
        steps: of the training.
        most: what it would take at most.
        reason: in words.
    """

    steps: int
    most: int
    reason: str


def choose_length(minutes: float, spent: float, step: float, most: int) -> Length:
    """As many steps as fit into the time, between `LEAST_STEPS` and `most`.

    Args:
        minutes: that the demo may take in all.
        spent: seconds that making and preparing the phantoms took.
        step: seconds of a training step.
        most: steps at most.
    """
    rest, each = AFTERWARDS * spent, OVERHEAD * step
    fitting = int((60 * minutes - spent - rest) / each) // 50 * 50
    steps = min(most, max(LEAST_STEPS, fitting))
    if steps == most:
        return Length(steps, most, f"{steps} training steps, all of the demo's; one takes about {each:.2g} s here")
    whole = (spent + rest + most * each) / 60
    why = f"to end after about {minutes:g} minutes" if fitting >= LEAST_STEPS else "fewer would show nothing"
    return Length(
        steps,
        most,
        f"{steps} training steps of at most {most}, {why}; one takes about {each:.2g} s here. All {most} would take "
        f"{duration(60 * whole)} (--minutes {np.ceil(1.1 * whole):.0f}) and leave smaller errors",
    )


def run_demo(
    output: Path,
    *,
    device: str = "auto",
    seed: int = 0,
    minutes: float = MINUTES,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the demo into a new folder.

    Args:
        output: a new or empty folder; holds the phantoms, the run, the converted volumes, the scores and report.html.
        device: as for training.
        seed: of the phantoms and the training.
        minutes: that it should take in all; decides the number of training steps, at most those of `EXPERIMENT`.
        progress: to report to.
        tell: called with the chosen length, in words, before the training begins.

    Returns:
        {"mae": HU, "baselines": {"constant", "lookup_table", "untrained"}, "steps", "seconds", "parts", "report"};
        every MAE is the mean over the test phantoms of the mean absolute error inside the body, "parts" the seconds of
        each part of the demo.
    """
    if not minutes > 0:
        raise InputError(f"minutes must be above 0, got {minutes}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not empty.", "Give a new folder with -o.")
    clock, watch = _Clock(), progress or Silent()
    cohort = phantom.write_cohort(
        output / "phantoms", seed=seed, train_mr=TRAINING_HEADS, train_ct=TRAINING_HEADS, spacing_mm=SPACING_MM
    )
    clock.note("phantoms")
    content = {**EXPERIMENT, "seed": seed}
    folders = {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent)}
    prepared = output / "run" / "prepared"
    factory.prepare(config.parse({**content, "data": folders}, "the demo"), prepared, watch)
    clock.note("preparation")
    content["data"] = {"source": str(prepared)}
    timed = factory.measure_step(config.parse(content, "the demo"), factory.choose_device(device), enough=TIMED_S)
    clock.note("timing")
    training = EXPERIMENT["training"]
    length = choose_length(minutes, clock.total, timed.median, training["steps"])
    if tell is not None:
        tell(length.reason)
    every = -(-length.steps // 3)
    shorter = {key: min(training[key], every) for key in ("picture_every", "checkpoint_every")}
    # One validation, at the end: it costs as much as many steps.
    content["training"] = {**training, **shorter, "steps": length.steps, "validate_every": length.steps}
    result = factory.train(config.parse(content, "the demo"), output / "run", device=device, progress=watch)
    if result.interrupted:
        raise KeyboardInterrupt
    clock.note("training")
    conversion = convert(
        output / "run",
        list(cohort.test_mr),
        output / "sct",
        Options(uncertainty=True, device=device, ensemble=Ensemble(flips=True)),
        progress=watch,
    )
    if conversion.failed:
        raise InputError(f"the demo could not convert its own phantoms: {conversion.failed}.")
    clock.note("conversion")
    ct_folder, mask_folder = cohort.test_ct[0].parent, cohort.test_mask[0].parent
    evaluation = evaluate(output / "sct", ct_folder, output / "scores", masks=mask_folder, progress=watch)
    untrained = _untrained(cohort, output / "run", device)
    clock.note("scores")
    written = write_report(
        output / "scores",
        output / "report.html",
        source=cohort.test_mr[0].parent,
        uncertainty=output / "sct" / "uncertainty",
        about=About(
            "medcyclegan demo: MR to CT on phantom heads",
            {
                "Data": f"phantom heads, seed {seed}: {len(cohort.train_mr)} MR and {len(cohort.train_ct)} CT of "
                f"different heads for training, {len(cohort.test_mr)} heads with both for the test",
                "Conversion": "mean of the translations of each head and of its mirror image",
                "Training": f"CycleGAN, {result.steps} steps, {result.seconds:.0f} s, {result.precision}, seed {seed}",
                "Before training": f"MAE {untrained:.1f} HU in the body by the same network",
                "Length": length.reason,
                "Time before this report": f"{clock.total:.0f} s: {clock.words()}",
            },
            output / "run",
        ),
        progress=watch,
    )
    clock.note("report")
    found = {"constant": written.baselines.constant, "lookup_table": written.baselines.table}
    return {
        "mae": float(evaluation.summary["metrics"]["mae"]["mean"]),
        "baselines": {**{name: mean_of(scores, "mae") for name, scores in found.items()}, "untrained": untrained},
        "steps": result.steps,
        "seconds": clock.total,
        "parts": clock.parts,
        "report": str(written.path),
    }


class _Clock:
    """Seconds of one part of the demo after the other."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.parts: dict[str, float] = {}

    def note(self, part: str) -> None:
        now = time.monotonic()
        self.parts[part], self.last = now - self.last, now

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def words(self) -> str:
        return ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self.parts.items())


def _untrained(cohort: phantom.Cohort, run: Path, device: str) -> float:
    """MAE inside the body of the network before its training, mean over the test phantoms, HU."""
    translator = factory.load_untrained(run, device=device)
    errors = []
    for mr, ct, mask in zip(cohort.test_mr, cohort.test_ct, cohort.test_mask, strict=True):
        inside = read_volume(mask).numpy()[0] > 0
        errors.append(float(np.abs(translator(mr).array - read_volume(ct).numpy()[0])[inside].mean()))
    return float(np.mean(errors))
