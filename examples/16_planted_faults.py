"""How well each uncertainty map finds faults planted into finished synthetic CTs, and the model's own errors.

    python examples/16_planted_faults.py RUN MR... [--ct CT...] [--trials 3]

Four kinds of fault are planted, one at a time: a lesion inserted, a piece of bone removed, a patch shifted by 8 mm, and
150 HU added in a ball. For every uncertainty map the table says the probability that a voxel of the fault has a higher
value than one without, over the body (AUROC; 0.5 is chance), as the mean over volumes and trials. With the true CTs, in
the order of the MRs, the last column asks the same of the voxels in which the sCT itself is wrong by more than 300 HU.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.stats import mannwhitneyu

from medcyclegan import load_translator
from medcyclegan.inference.translator import Source, Translator
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.transforms.geometry import resample

FAULTS = ("lesion inserted", "lesion removed", "patch shifted", "150 HU added")


def plant(hu: np.ndarray, body: np.ndarray, spacing: np.ndarray, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The volume with a fault, and the voxels that it changed by more than 50 HU."""
    random = np.random.default_rng(seed)
    depth = ndimage.distance_transform_edt(body, sampling=spacing)
    at_bone = kind in ("lesion removed", "patch shifted")
    places = np.argwhere((hu > 300) & (depth > 6) if at_bone else depth > 30)
    center = places[random.integers(len(places))]
    axes = np.ogrid[tuple(slice(0, n) for n in hu.shape)]
    distance = np.sqrt(sum(((axis - c) * s) ** 2 for axis, c, s in zip(axes, center, spacing, strict=True)))
    ball = body & (distance < (12 if kind.startswith("lesion") else 20))
    shift = round(8 / spacing[0])
    changed = {
        "lesion inserted": hu + 400,
        "lesion removed": np.minimum(hu, 40),  # a piece of bone becomes soft tissue
        "patch shifted": np.roll(hu, shift, 0),
        "150 HU added": hu + 150,
    }[kind]
    result = np.where(ball, changed, hu)
    return result, np.abs(result - hu) > 50


def auroc(values: np.ndarray, fault: np.ndarray) -> float:
    return float(mannwhitneyu(values[fault], values[~fault]).statistic / (fault.sum() * (~fault).sum()))


def maps_of(translator: Translator, source: Source, members: list[np.ndarray], hu: np.ndarray) -> dict[str, np.ndarray]:
    values = np.where(source.case.body, translator.scaler.apply(hu), -1).astype(np.float32)
    return translator.uncertainty_maps(source.case, values, members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("mr", type=Path, nargs="+")
    parser.add_argument("--ct", type=Path, nargs="+", default=[])
    parser.add_argument("--trials", type=int, default=3)
    given = parser.parse_args()
    translator = load_translator(given.run)
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number, file in enumerate(given.mr):
        source = translator.read(file)
        case, body = source.case, source.case.body
        members = translator.member_results(source)
        sct = translator.scaler.undo(members[0])
        for kind in FAULTS:
            for trial in range(given.trials):
                faulty, where = plant(sct, body, case.grid.spacing, kind, seed=1000 * number + trial)
                for name, values in maps_of(translator, source, members, faulty).items():
                    found[name, kind].append(auroc(values[body], where[body]))
        if given.ct:
            volume = read_volume(given.ct[number])
            truth = resample(volume.numpy()[0].astype(np.float32), grid_of(volume), case.grid, fill=-1024.0)
            wrong = np.abs(sct - truth) > 300
            for name, values in maps_of(translator, source, members, sct).items():
                found[name, "own errors"].append(auroc(values[body], wrong[body]))
    columns = [*FAULTS, *(["own errors"] if given.ct else [])]
    print("| |" + "".join(f" {column} |" for column in columns))
    print("|---|" + "---|" * len(columns))
    for name in dict.fromkeys(name for name, _ in found):
        print(f"| {name} |" + "".join(f" {np.mean(found[name, column]):.2f} |" for column in columns))


if __name__ == "__main__":
    main()
