"""A small cohort with everything that the verbs make of it, and a way to call a verb inside this process."""

from __future__ import annotations

import atexit
import contextlib
import io
import shutil
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medcyclegan import cli, phantom

TINY = (
    *("model.generator.filters=4", "model.generator.blocks=1", "model.discriminator.filters=4"),
    *("model.discriminator.layers=1", "objective.pool_size=2", "training.steps=2", "training.log_every=1"),
    *("training.picture_every=2", "training.checkpoint_every=1", "training.precision=float32", "patches.size=[16,16]"),
)


@dataclass(frozen=True)
class Said:
    """How a verb ended: its exit code (None: a traceback, which is then in `error`) and what it printed."""

    code: int | None
    out: str
    error: str


def verb(*words: str | Path) -> Said:
    out, error = io.StringIO(), io.StringIO()
    former, sys.argv = sys.argv, ["medcyclegan", *map(str, words)]
    code: int | None = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as fault:
        where = traceback.extract_tb(fault.__traceback__)[-1]
        code = None
        error.write(f"{type(fault).__name__}: {str(fault)[:200]} ({Path(where.filename).name}:{where.lineno})")
    finally:
        sys.argv = former
    return Said(code, out.getvalue(), error.getvalue())


def sets(*more: str) -> list[str]:
    return [word for setting in (*TINY, *more) for word in ("--set", setting)]


@cache
def workplace() -> Path:
    """phantoms/, prepared/, run/, sct/ (converted), scores/ (evaluated): made once in a process and its children."""
    folder = Path(tempfile.mkdtemp(prefix="campaign-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # children leave by os._exit
    made = phantom.write_cohort(
        folder / "phantoms", seed=3, train_mr=2, train_ct=2, test=1, spacing_mm=(8.0, 8.0, 10.0), shape=(27, 33, 16)
    )
    train = folder / "phantoms" / "train"
    pairs = folder / "pairs.csv"
    pairs.write_text(f"case,a,b,mask\nhead,{made.test_mr[0]},{made.test_ct[0]},{made.test_mask[0]}\n")
    rows = [
        f"{file},{domain},{file.stem}"
        for domain in "ab"
        for file in sorted((train / {"a": "mr", "b": "ct"}[domain]).iterdir())
    ]
    (folder / "cohort.csv").write_text("\n".join(["image,domain,patient", *rows]) + "\n")
    for words in (
        ["prepare", "--a", train / "mr", "--b", train / "ct", "-o", folder / "prepared", "--workers", "1"],
        ["train", "-o", folder / "run", "--device", "cpu", *sets(f"data.source={folder / 'prepared'}")],
        ["convert", folder / "run", made.test_mr[0], "-o", folder / "sct", "--device", "cpu"],
        ["evaluate", folder / "sct", made.test_ct[0].parent, "-o", folder / "scores", "--workers", "1"],
    ):
        said = verb(*words)
        if said.code != 0:
            raise RuntimeError(f"{words}: {said}")
    shutil.copytree(folder / "scores", folder / "scores2")
    return folder
