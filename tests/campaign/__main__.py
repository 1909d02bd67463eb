"""Run the campaign by hand, from the folder `tests`:

python -m campaign 10000  # mutations, spread over all formats, and their outcomes
python -m campaign 500 --only nrrd-raw --first 1000
python -m campaign 1 --only nifti1 --first 4711 --keep folder  # one again, with its files
python -m campaign 200 --only verb-convert
python -m campaign 8 --kills --only convert  # at eight moments
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from campaign import outcomes
from campaign.kills import faults
from campaign.scenarios import SCENARIOS
from campaign.trials import EVERY, make, trial
from campaign.verbs import VERBS
from campaign.workplace import workplace


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m campaign")
    parser.add_argument("count", type=int)
    parser.add_argument("--only", action="append", help="a format")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--keep", type=Path, help="where the changed files go")
    parser.add_argument("--kills", action="store_true", help="disturb verbs instead of inputs")
    parser.add_argument("--all", action="store_true", help="tell the sound outcomes too")
    given = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    workplace()  # once, and not in every child
    if given.kills:
        for name in given.only or SCENARIOS:
            with tempfile.TemporaryDirectory() as root:
                for fault in faults(name, SCENARIOS[name], Path(root), seed=given.first, most=given.count):
                    print(fault, flush=True)
            print(f"{name}: done", flush=True)
        return
    names = given.only or [name for name in EVERY if name not in VERBS]
    todo = [(names[i % len(names)], given.first + i // len(names)) for i in range(given.count)]
    if given.keep:
        for name, seed in todo:
            (folder := given.keep / f"{name}-{seed}").mkdir(parents=True)
            print(f"{folder}: {make(name, seed, folder)}")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for found in outcomes.run(trial, todo):
        counts[found.format][found.word] += 1
        if given.all or found.word not in outcomes.GOOD:
            print(f"{found.word}: {found.format} {found.seed}: {found.change}: {found.detail}", flush=True)
    words = ["refused", "right", "warned", "differs, warned"]
    words += sorted({w for c in counts.values() for w in c} - set(words))
    print(f"{'':22}" + "".join(f"{word:>16}" for word in words))
    for name, counter in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{name:22}" + "".join(f"{counter[word]:16}" for word in words))


if __name__ == "__main__":
    main()
