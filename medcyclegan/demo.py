"""The whole job on phantom patients in a few minutes: make, prepare, train, convert, evaluate, report.

The training volumes are of different phantoms and unpaired; the test phantoms are paired, so the truth is known. Three
baselines are printed beside the score; each is the best of its kind *with the answer in hand*, the network has none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcyclegan import build, config, phantom
from medcyclegan.convert import convert, options
from medcyclegan.errors import InputError
from medcyclegan.evaluation.evaluate import evaluate
from medcyclegan.io.reader import read_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.report.page import Table
from medcyclegan.report.report import write_report

SPACING_MM = (3.0, 3.0, 4.0)
TRAINING_HEADS = 16  # of each modality; they take seconds, and few heads are soon learned by heart
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


def run_demo(output: Path, *, device: str = "auto", seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run the demo into a new folder.

    Args:
        output: a new or empty folder; holds the phantoms, the run, the converted volumes, the scores and report.html.
        device: as for training.
        seed: of the phantoms and the training.

    Returns:
        {"mae": HU, "baselines": {"constant", "lookup_table", "untrained"}, "seconds", "report"}; every MAE is the mean
        over the test phantoms of the mean absolute error inside the body.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not empty.", "Give a new folder with -o.")
    started = time.monotonic()
    watch = progress or Silent()
    cohort = phantom.write_cohort(
        output / "phantoms", seed=seed, train_mr=TRAINING_HEADS, train_ct=TRAINING_HEADS, spacing_mm=SPACING_MM
    )
    folders = {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent)}
    experiment = config.parse({**EXPERIMENT, "seed": seed, "data": folders}, "the demo")
    result = build.train(experiment, output / "run", device=device, progress=watch)
    conversion = convert(
        output / "run",
        list(cohort.test_mr),
        output / "sct",
        trust=True,
        device=device,
        progress=watch,
        **options(planes=None, flips=True, fuse="mean", statistics="window"),
    )
    if conversion.failed:
        raise InputError(f"the demo could not convert its own phantoms: {conversion.failed}.")
    ct_folder, mask_folder = cohort.test_ct[0].parent, cohort.test_mask[0].parent
    evaluation = evaluate(output / "sct", ct_folder, output / "scores", masks=mask_folder, progress=watch)
    baselines = _baselines(cohort, output / "run", device)
    mae = float(evaluation.summary["metrics"]["mae"]["mean"])
    report = output / "report.html"
    seconds = time.monotonic() - started
    write_report(
        output / "scores",
        report,
        source=cohort.test_mr[0].parent,
        trust=output / "sct" / "trust",
        title="medcyclegan demo: MR to CT on phantom heads",
        facts={
            "Data": f"phantom heads, seed {seed}: {len(cohort.train_mr)} MR and {len(cohort.train_ct)} CT of different "
            f"heads for training, {len(cohort.test_mr)} heads with both for the test",
            "Conversion": "mean of the translations of each head and of its mirror image",
            "Training": f"CycleGAN, {result.steps} steps, {result.seconds:.0f} s, {result.precision}, seed {seed}",
            "Time in all": f"{seconds:.0f} s",
        },
        baselines=_baseline_table(mae, baselines),
        run=output / "run",
        progress=watch,
    )
    return {"mae": mae, "baselines": baselines, "seconds": time.monotonic() - started, "report": str(report)}


def best_lookup(
    intensity: npt.NDArray[np.floating], hu: npt.NDArray[np.floating], bins: int = 256
) -> npt.NDArray[np.float64]:
    """HU that the best table from intensity to HU gives: per bin the median, which minimizes the absolute error.

    Args:
        intensity: (N,) MR values inside the body.
        hu: (N,) the true HU of the same voxels.
        bins: of equal width over the intensity's range.
    """
    edges = np.linspace(intensity.min(), intensity.max(), bins + 1)
    index = np.digitize(intensity, edges[1:-1])
    table = np.array([np.median(hu[index == i]) if (index == i).any() else 0.0 for i in range(bins)])
    return table[index]


def _baselines(cohort: phantom.Cohort, run: Path, device: str) -> dict[str, float]:
    """MAE inside the body of what needs no learning, mean over the test phantoms."""
    untrained = build.load_untrained(run, device=device)
    errors: dict[str, list[float]] = {"constant": [], "lookup_table": [], "untrained": []}
    for mr_file, ct_file, mask_file in zip(cohort.test_mr, cohort.test_ct, cohort.test_mask, strict=True):
        inside = read_volume(mask_file).numpy()[0] > 0
        mr, hu = read_volume(mr_file).numpy()[0][inside], read_volume(ct_file).numpy()[0][inside]
        guesses = {
            "constant": np.median(hu),
            "lookup_table": best_lookup(mr, hu),
            "untrained": untrained(mr_file).array[inside],
        }
        for name, guess in guesses.items():
            errors[name].append(float(np.abs(guess - hu).mean()))
    return {name: float(np.mean(values)) for name, values in errors.items()}


def _baseline_table(mae: float, baselines: Mapping[str, float]) -> Table:
    labels = {
        "constant": "best constant (median of each test CT)",
        "lookup_table": "best intensity-to-HU table (256 bins, fitted to each test case)",
        "untrained": "the same network before training",
    }
    rows = [("CycleGAN, trained without pairs", mae), *((labels[name], value) for name, value in baselines.items())]
    return Table("Every baseline but the last knows the answer", ("method", "MAE in the body [HU]"), tuple(rows))
