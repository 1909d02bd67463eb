"""Train every generator on the same phantom pairs and show what each makes of a head that it has not seen.

    python examples/05_generators_compared.py -o OUTPUT_FOLDER [--steps 1500] [--generators NAME ...]

With pairs (Pix2Pix) a generator shows in minutes what it can express; unpaired training takes longer. Writes
generators.png and prints the mean absolute error in the body beside that of the best table from intensity to HU, which
is fitted to the test head with the answer in hand. Networks are narrow; a run that is finished is not done again.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from medcyclegan import config, factory, load_translator, phantom
from medcyclegan.io.reader import read_volume
from medcyclegan.io.writer import write_volume
from medcyclegan.report.baselines import best_lookup

SPACING = (3.0, 3.0, 4.0)
GENERATORS: dict[str, dict[str, Any]] = {
    "resnet": {"filters": 16, "blocks": 6, "downsamplings": 1},
    "unet": {"filters": 32, "depth": 4},
    "attention_unet": {"filters": 16, "depth": 3},
    "mask_guided": {"filters": 16, "blocks": 6, "downsamplings": 1},
    "vit_unet": {"filters": 16, "depth": 3, "blocks": 4},
    "swin_unetr": {"filters": 12},
}


def write_pairs(folder: Path, heads: int) -> None:
    """MR and CT of the same heads on the same grids; the last head is for the test."""
    from medcyclegan.io.grid import Grid

    shape = (72, 88, 40)
    for index in range(heads + 1):
        head = phantom.head(7000 + index)
        affine = np.diag([*SPACING, 1.0])
        affine[:3, 3] = head.world((0, -8, 45)) - (np.array(shape) - 1) / 2 * SPACING
        scan, grid = phantom.sample(head, shape, affine), Grid(shape, affine)
        part = "test" if index == heads else "train"
        for kind, values in (("mr", scan.mr_t1), ("ct", scan.ct), ("mask", scan.body.astype(np.uint8))):
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
            write_volume(folder / part / kind / f"head_{index:02d}.nii.gz", values, grid)


def train(name: str, output: Path, cohort: Path, steps: int) -> Path:
    experiment = config.parse(
        {
            "data": {"a": str(cohort / "train" / "mr"), "b": str(cohort / "train" / "ct")},
            "preparation": {"spacing": SPACING},
            "patches": {"flip": True, "size": [80, 96]},
            "model": {
                "generator": {"_target_": name, **GENERATORS[name]},
                "discriminator": {"filters": 16, "layers": 3},
            },
            "objective": {"_target_": "pix2pix"},
            "training": {
                "steps": steps,
                "learning_rate": 1e-3,
                "ema_decay": 0.99,
                "picture_every": steps,
                "checkpoint_every": steps,
            },
        },
        name,
    )
    return factory.train(experiment, output / name, device="cpu").run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--generators", nargs="+", default=list(GENERATORS), choices=list(GENERATORS))
    given = parser.parse_args()
    cohort = given.output / "cohort"
    if not cohort.exists():
        write_pairs(cohort, given.heads)
    (file,) = (cohort / "test" / "mr").iterdir()
    mr, ct, mask = (read_volume(cohort / "test" / kind / file.name).numpy()[0] for kind in ("mr", "ct", "mask"))
    inside = mask > 0
    table = float(np.abs(best_lookup(mr[inside], ct[inside]) - ct[inside]).mean())
    print(f"best table from intensity to HU: {table:.1f} HU")

    matplotlib.use("Agg")
    figure = Figure(figsize=(6.4, 1.75 * len(given.generators)), dpi=100, layout="constrained")
    rows = figure.subplots(len(given.generators), 4, squeeze=False)
    for row, name in zip(rows, given.generators, strict=True):
        run = given.output / name
        if not (run / "checkpoint.pt").exists():
            train(name, given.output, cohort, given.steps)
        sct = load_translator(run, device="cpu")(file).array.astype(np.float32)
        error = float(np.abs(sct - ct)[inside].mean())
        print(f"{name}: {error:.1f} HU after {given.steps} steps")
        k = ct.shape[2] // 2
        shown = ((mr, {}), (sct, {"vmin": -400, "vmax": 1200}), (ct, {"vmin": -400, "vmax": 1200}))
        for axis, (volume, scale) in zip(row[:3], shown, strict=True):
            axis.imshow(volume[:, :, k].T[::-1], cmap="gray", **scale)
        row[3].imshow((sct - ct)[:, :, k].T[::-1], cmap="RdBu_r", vmin=-600, vmax=600)
        row[0].set_ylabel(name, fontsize=8)
        row[1].set_title(f"sCT, {error:.0f} HU", fontsize=8)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(rows[0], ("MR", None, "CT", "sCT - CT, ±600 HU"), strict=True):
        if title:
            axis.set_title(title, fontsize=8)
    figure.savefig(given.output / "generators.png")


if __name__ == "__main__":
    main()
