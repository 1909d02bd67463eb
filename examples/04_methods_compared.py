"""Compare training methods on a phantom cohort made hard: head sizes and fields of view differ between MR and CT.

python examples/04_methods_compared.py -o OUTPUT_FOLDER [--steps 1200] [--seeds 0 1 2] [--jobs 2] [--methods NAME ...]

Writes table.md and table.json: mean absolute error inside the body, Dice of bone (above 250 HU) and SSIM on paired test
heads that no training has seen, as mean and standard deviation over the seeds. The cohort is the same for every seed;
the seed decides weights and data order. A run that is finished is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SPACING = (3.0, 3.0, 4.0)
# What this program does by default beyond the paper, and what turns it off.
PLAIN = {"preparation": {"mr_floor": -1.0}, "model": {"discriminator_windows": []}}
MASK = {"_target_": "mask_consistency", "rim": 2}
MIND = {"_target_": "mind", "weight": 1.0}
CORRELATION = {"_target_": "gradient_correlation", "weight": 1.0}


def method(
    objective: str = "cyclegan", matching: str = "off", structure: tuple[dict[str, Any], ...] = (), look: bool = False
) -> dict[str, Any]:
    return {
        **({"preparation": {}, "model": {}} if look else PLAIN),
        "objective": {"_target_": objective},
        "patches": {"matching": matching},
        "losses": {"structure": list(structure)},
    }


# Every row adds its part to plain CycleGAN alone, the best combination has several.
METHODS: dict[str, dict[str, Any]] = {
    "cyclegan": method(),
    "+ position matching": method(matching="vertex"),
    "+ mask consistency": method(structure=(MASK,)),
    "+ mind": method(structure=(MIND,)),
    "+ gradient correlation": method(structure=(CORRELATION,)),
    "+ look through windows and MR floor": method(look=True),
    "best combination": method(matching="vertex", structure=(MASK,), look=True),
    "cut": method("cut"),
    "pix2pix, true pairs": method("pix2pix", look=True),
}


def write_cohort(folder: Path, heads: int, test: int) -> None:
    """MR of smaller heads from the brow up, CT of larger heads down to the neck; other heads of the MR kind to test."""
    from medcyclegan import phantom
    from medcyclegan.io.grid import Grid
    from medcyclegan.io.writer import write_volume

    random = np.random.default_rng(2026)
    kinds = {"mr": ((0.86, 0.98), 30), "ct": ((1.02, 1.14), 44), "test": ((0.86, 0.98), 30)}
    for number, (kind, (sizes, slices)) in enumerate(kinds.items()):
        for index in range(test if kind == "test" else heads):
            head = phantom.head(1000 * (number + 1) + index)
            pose = head.pose.copy()
            pose[:3, :3] *= random.uniform(*sizes)
            head = replace(head, pose=pose)
            shape = (72, 88, slices)
            affine = np.diag([*SPACING, 1.0])
            top = head.world((0, -10, 104))[2] + 9  # the lower end then depends on the number of slices
            affine[:3, 3] = (*(head.world((0, -8, 0))[:2] - (np.array(shape[:2]) - 1) / 2 * SPACING[:2]), 0.0)
            affine[2, 3] = top - (slices - 1) * SPACING[2]
            scan, grid, name = phantom.sample(head, shape, affine), Grid(shape, affine), f"head_{index + 1:02d}.nii.gz"
            volumes = {
                "mr": {"mr": scan.mr_t1, "paired_ct": scan.ct},
                "ct": {"ct": scan.ct},
                "test": {"test_mr": scan.mr_t1, "test_ct": scan.ct, "test_mask": scan.body.astype(np.uint8)},
            }[kind]
            for place, values in volumes.items():
                (folder / place).mkdir(parents=True, exist_ok=True)
                write_volume(folder / place / name, values, grid)


def run(output: Path, name: str, seed: int, steps: int, cohort: Path) -> None:
    """Train one method with one seed, convert the test heads and grade them."""
    from medcyclegan import config, factory
    from medcyclegan.convert import Options, convert
    from medcyclegan.evaluation.evaluate import evaluate

    chosen = METHODS[name]
    paired = chosen["objective"]["_target_"] == "pix2pix"
    experiment = config.parse(
        {
            "seed": seed,
            "data": {"a": str(cohort / "mr"), "b": str(cohort / ("paired_ct" if paired else "ct"))},
            "preparation": {"spacing": SPACING, **chosen["preparation"]},
            "patches": {"flip": True, "size": [80, 96], **chosen["patches"]},
            "model": {
                "generator": {"_target_": "attention_unet", "filters": 16, "depth": 3},
                "discriminator": {"filters": 16, "layers": 3},
                **chosen["model"],
            },
            "objective": chosen["objective"],
            "losses": chosen["losses"],
            "training": {
                "steps": steps,
                "learning_rate": 4e-4,
                "ema_decay": 0.99,
                "picture_every": max(1, steps // 2),
                "checkpoint_every": steps,
            },
        },
        name,
    )
    factory.train(experiment, output / "run", device="cpu")
    convert(output / "run", [cohort / "test_mr"], output / "sct", Options(device="cpu"))
    evaluate(output / "sct", cohort / "test_ct", output / "scores", masks=cohort / "test_mask")


def scores(output: Path, cohort: Path) -> dict[str, float]:
    """Means over the test heads."""
    from medcyclegan.io.reader import read_volume

    metrics = json.loads((output / "scores" / "summary.json").read_text())["metrics"]
    dice = []
    for reference in sorted((cohort / "test_ct").glob("*.nii.gz")):
        synthetic = output / "sct" / reference.name.replace(".nii.gz", "_sct.nii.gz")
        bones = [read_volume(path).numpy()[0] > 250 for path in (reference, synthetic)]
        dice.append(2 * (bones[0] & bones[1]).sum() / (bones[0].sum() + bones[1].sum()))
    return {"mae": metrics["mae"]["mean"], "dice_bone": float(np.mean(dice)), "ssim": metrics["ssim"]["mean"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--test", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one processor core each")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    cohort = given.output / "cohort"

    def place(name: str, seed: int) -> Path:
        return given.output / name.strip("+ ").replace(" ", "-").replace(",", "") / f"seed-{seed}"

    if given.one:
        name, seed = given.one[0], int(given.one[1])
        run(place(name, seed), name, seed, given.steps, cohort)
        return
    if not cohort.exists():
        write_cohort(cohort, given.heads, given.test)

    def job(name: str, seed: int) -> None:
        if not (place(name, seed) / "scores" / "summary.json").exists():
            command = [sys.executable, __file__, "-o", str(given.output), "--steps", str(given.steps)]
            subprocess.run(
                [*command, "--one", name, str(seed)],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.DEVNULL,
            )

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda pair: job(*pair), [(n, s) for s in given.seeds for n in given.methods]))
    rows = {name: [scores(place(name, seed), cohort) for seed in given.seeds] for name in given.methods}
    lines = [
        f"{given.steps} steps, seeds {given.seeds}",
        "",
        "| method | MAE [HU] | bone Dice | SSIM |",
        "|---|---|---|---|",
    ]
    for name, results in rows.items():
        cells = [
            f"{np.mean(v):.{digits}f} ± {np.std(v, ddof=1) if len(v) > 1 else 0:.{digits}f}"
            for key, digits in (("mae", 1), ("dice_bone", 3), ("ssim", 3))
            for v in [[result[key] for result in results]]
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (given.output / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (given.output / "table.json").write_text(json.dumps(rows), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
