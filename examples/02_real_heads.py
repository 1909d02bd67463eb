"""A small real exam: learn MR to CT from unpaired slices of real heads, and score against a real CT.

    python examples/02_real_heads.py --data ../shared/data/heads -o real-heads [--steps 4500]

The folder holds T1 heads and a CT template in HU on one grid (91 x 109 x 91 voxels of 2 mm). Training draws MR slices
and CT slices independently of each other; that the volumes are aligned is used by the score alone. The volume that is
converted is among the training MRs, as is usual for unpaired translation of a given cohort (transductive), so the
figures say how well anatomy is learned and nothing about new patients.
"""

import argparse
import csv
import shutil
import time
from pathlib import Path

import numpy as np
from ignite.engine import Events
from scipy import ndimage

from medcyclegan import config, factory, load_translator
from medcyclegan.evaluation.case import score_case
from medcyclegan.evaluation.evaluate import evaluate_pairs
from medcyclegan.evaluation.metrics.tissue import Tissues
from medcyclegan.evaluation.pairing import find_cases
from medcyclegan.evaluation.protocol import protocol
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.io.writer import write_volume
from medcyclegan.report.baselines import best_lookup
from medcyclegan.report.report import write_report

MR = ("mr_avg152_t1.nii.gz", "mr_single_subject_t1.nii.gz")
CT = "ct_template_hu.nii.gz"


def head_of(ct: np.ndarray) -> np.ndarray:
    """Above -300 HU, opened, filled, the largest piece: the mask that the exam is scored in."""
    filled = ndimage.binary_fill_holes(ndimage.binary_opening(ct > -300, iterations=2))
    pieces, _ = ndimage.label(filled)
    return pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


class ScoreWhileTraining:
    """Ignite handler: converts and scores with the checkpoint that was just saved, and stops the clock meanwhile."""

    def __init__(self, run: Path, mr: Path, ct: np.ndarray, mask: np.ndarray, every: int) -> None:
        self.run, self.mr, self.ct, self.mask, self.every = run, mr, ct, mask, every
        self.scoring = 0.0

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)

    def start(self, engine) -> None:
        self.started = time.monotonic()

    def __call__(self, engine) -> None:
        began = time.monotonic()
        row = {"step": engine.state.iteration, "training_s": round(began - self.started - self.scoring, 1)}
        sct = load_translator(self.run, device="cpu")(self.mr).array
        # Bone is what exceeds 250 HU here, as in the table of the documentation.
        scores = score_case(self.ct, sct, self.mask, protocol("native"), tissues=Tissues(bone_above=250))
        row |= {name: round(scores[name].value, 4) for name in ("mae", "mae_bone", "ssim", "ms_ssim", "psnr")}
        new = not (self.run / "exam.csv").exists()
        with (self.run / "exam.csv").open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)
        self.scoring += time.monotonic() - began


parser = argparse.ArgumentParser(description="Train on real heads without pairing and score against a real CT.")
parser.add_argument("--data", type=Path, required=True, help="folder with the heads")
parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
parser.add_argument("--steps", type=int, default=4500)
parser.add_argument("--score-every", type=int, default=500)
parser.add_argument("--set", action="append", default=[], dest="overrides", help="any key of the config")
arguments = parser.parse_args()

for domain, names in (("mr", MR), ("ct", (CT,))):
    (arguments.output / domain).mkdir(parents=True)
    for name in names:
        shutil.copy(arguments.data / name, arguments.output / domain)

volume = read_volume(arguments.data / CT)
ct = volume.numpy()[0]
mr = read_volume(arguments.data / MR[0]).numpy()[0]
mask = head_of(ct)
print(f"head: {mask.sum()} voxels")
print(f"best constant: MAE {np.abs(ct[mask] - np.median(ct[mask])).mean():.1f} HU")
table = best_lookup(mr[mask], ct[mask])
print(f"best intensity-to-HU table, fitted with the answer in hand: MAE {np.abs(ct[mask] - table).mean():.1f} HU")

settings = Path(__file__).parents[1] / "configs" / "brain_2d_cpu.yaml"
steps = [f"training.steps={arguments.steps}", f"training.checkpoint_every={arguments.score_every}"]
experiment = config.with_data(
    config.load(settings, [*steps, *arguments.overrides]), {"a": arguments.output / "mr", "b": arguments.output / "ct"}
)
run = arguments.output / "run"
scorer = ScoreWhileTraining(run, arguments.data / MR[0], ct, mask, arguments.score_every)
factory.train(experiment, run, handlers=[scorer])

sct = load_translator(run)(arguments.data / MR[0])
sct.save(arguments.output / "mr_avg152_t1_sct.nii.gz")
out = arguments.output
write_volume(out / "head.nii.gz", mask.astype(np.uint8), grid_of(volume))
exam = {"pred": out / "mr_avg152_t1_sct.nii.gz", "ref": arguments.data / CT}
exam |= {"mask": out / "head.nii.gz", "source": arguments.data / MR[0]}
evaluate_pairs(find_cases(exam), out / "scores")
write_report(out / "scores", out / "report.html")
print(f"written: {out / 'mr_avg152_t1_sct.nii.gz'}, {out / 'report.html'}, {run / 'exam.csv'}")
