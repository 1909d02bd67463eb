"""Does a test notice if a sign, an axis, an index, a unit or a comparison is wrong? Changes one at a time, and looks.

    python tests/mutate.py                         the seeded choice of mutants, in every module of the table
    python tests/mutate.py range_error splits      only files whose path contains one of the words
    python tests/mutate.py --count 400 --seed 1    others, and more of them

A *mutant* is the program with one expression changed. It is *caught* if a test of its module fails (or takes ten times
as long), and has *survived* if all pass. One that cannot differ, or only in what does not matter, is *equivalent* and
named in `EQUIVALENT` with the reason. Exit code 1: fewer than 95 % of the others were caught.

Everything happens in a copy of the tree. Libraries are imported once; every mutant is a forked process, into which the
changed module is loaded from memory. Not a part of the ordinary suite: a few minutes of two cores.
"""

from __future__ import annotations

import argparse
import ast
import copy
import fnmatch
import importlib
import importlib.abc
import importlib.util
import math
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "medcyclegan"
LIBRARIES = (
    "torch", "monai.transforms", "monai.data", "monai.losses", "monai.engines", "monai.networks.nets", "SimpleITK",
    "nibabel", "pydicom", "scipy.stats", "scipy.ndimage", "skimage", "ignite.engine", "matplotlib.image", "einops",
    "torch.utils.tensorboard", "pydantic", "yaml", "typer", "pytest",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Which tests stand for which files.

    Attributes:
        files: pattern below the package.
        tests: files in `tests/`, those first that are quick and find most; "{stem}" is the name of the file, and what
            is not there is passed over.
        select: pytest's `-k`, to leave out what is slow and of another module.
        within: only this class or function; all of the file where empty.
    """

    files: str
    tests: tuple[str, ...]
    select: str = ""
    within: str = ""


# The first rule that fits a file counts. A new file in `io/` joins by its pattern.
RULES = (
    Rule("io/grid.py", ("test_grid.py",)),
    Rule("io/plausible.py", ("test_plausible.py",)),
    Rule("io/nifti.py", ("test_headers.py", "test_nifti.py"), "not cut_anywhere and not mha and not nrrd"),
    Rule("io/writer.py", ("test_writer.py", "test_nifti.py"), "not all_axis_orders and not failed_write"),
    Rule("io/metaimage.py", ("test_headers.py",), "not Nifti and not nii and not nrrd"),
    Rule("io/nrrd.py", ("test_headers.py",), "not Nifti and not nii and not mha"),
    Rule("io/text_header.py", ("test_headers.py",), "not Nifti and not nii"),
    Rule("io/stored.py", ("test_stored.py", "test_headers.py")),
    Rule("io/dicom/ct_series.py", ("test_dicom_out.py",), "FromElsewhere or FromDicom"),
    Rule("io/dicom/stack.py", ("test_dicom_in.py",), "Values or Tilt or refusal or second or inverted or echoes"),
    Rule("io/dicom/padding.py", ("test_dicom_padding.py",)),
    Rule("io/dicom/*.py", ("test_dicom_padding.py", "test_dicom_in.py"), "not Real and not Listing"),
    Rule("io/*.py", ("test_{stem}.py", "test_reader.py"), "not slow and not real"),
    Rule("transforms/geometry.py", ("test_geometry.py", "test_pipeline.py"), "not real"),
    Rule("transforms/intensity.py", ("test_intensity.py", "test_standardization.py")),
    Rule("evaluation/metrics/surfaces.py", ("test_segmentation.py",)),
    Rule("evaluation/metrics/ms_ssim.py", ("test_metrics.py",), "halving or need_no_files or reasons"),
    Rule("evaluation/metrics/moments.py", ("test_metrics.py",), "ssim_of or slab_size or need_no_files"),
    Rule("evaluation/metrics/*.py", ("test_metrics.py",), "not ms_ssim and not 2025 and not slabs"),
    Rule("evaluation/protocol.py", ("test_metrics.py",), "protocols or hand"),
    Rule("evaluation/range_error.py", ("test_range_error.py",), "not [1.0]"),
    Rule("evaluation/statistics.py", ("test_statistics.py",), "not as_often"),
    Rule("data/splits.py", ("test_splits.py",)),
    Rule("training/pool.py", ("test_pool.py",), "not objective"),
    Rule("training/trainer.py", ("test_training.py",), "average", within="ExponentialMovingAverage"),
)

# "file: function: before -> after": why nobody can tell, or why nobody needs to.
EQUIVALENT: dict[str, str] = {
    "io/nifti.py: geometry: _BODY_MM[0] <= longest <= _BODY_MM[1] -> _BODY_MM[0] < longest <= _BODY_MM[1]": (
        "no length is the limit exactly"
    ),
    "io/plausible.py: refuse_impossible_geometry: np.where(largest > 0, largest, 1) -> "
    "np.where(largest > 0, largest, 0)": "a spacing of 0 is left to another check either way",
    "io/grid.py: Grid.spacing: self.affine[:3, :3] -> self.affine[:4, :3]": "the fourth row is 0",
    "transforms/geometry.py: _copy_voxels: error.max() > _EXACT -> error.max() >= _EXACT": "no error is the limit",
    "transforms/geometry.py: working_grid: np.abs(step / wanted - 1) * count < _NEGLIGIBLE -> "
    "np.abs(step / wanted - 1) * count <= _NEGLIGIBLE": "no spacing is the limit exactly",
    "data/splits.py: split_patients: 0 <= val < 1 -> 0 <= val < 2": "the sum of the shares is below 1 anyway",
    "data/splits.py: split_patients: 0 <= test < 1 -> 0 <= test < 2": "the sum of the shares is below 1 anyway",
    "evaluation/metrics/ms_ssim.py: ms_ssim: max(value, 0.0) -> max(value, -1.0)": "all terms are at least 0 before",
    "evaluation/range_error.py: module: range(0, 360, 10) -> range(0, 359, 10)": "both end at 350",
    "evaluation/statistics.py: mean_interval: shifted > 0 -> shifted >= 0": "asked only where it is far from 0",
    "evaluation/statistics.py: ranking: per_patient.mean(axis=1).round(12) -> per_patient.mean(axis=1).round(13)": (
        "either is coarser than rounding and finer than ranks"
    ),
    "evaluation/statistics.py: ranking: per_patient[:, draws].mean(axis=2).round(12) -> "
    "per_patient[:, draws].mean(axis=2).round(13)": "either is coarser than rounding and finer than ranks",
}

SWAPPED_OPERATORS: dict[type[ast.AST], type[Any]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
SWAPPED_NAMES = {
    "min": "max", "minimum": "maximum", "argmin": "argmax", "all": "any", "floor": "ceil", "sin": "cos",
    "ones": "zeros", "mean": "sum", "rint": "floor", "full_like": "zeros_like",
}  # fmt: skip
SWAPPED_NAMES |= {after: before for before, after in SWAPPED_NAMES.items() if before not in ("rint", "full_like")}


@dataclass(frozen=True)
class Mutant:
    """One change: the source of the whole file with it, and what it is in words."""

    file: str
    line: int
    where: str
    change: str
    source: str

    @property
    def name(self) -> str:
        return f"{self.file}: {self.where}: {self.change}"


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may be changed into."""
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPPED_OPERATORS:
        changed = copy.copy(node)
        changed.op = SWAPPED_OPERATORS[type(node.op)]()
        yield changed
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED_OPERATORS:
        changed = copy.copy(node)
        changed.ops = [SWAPPED_OPERATORS[type(node.ops[0])](), *node.ops[1:]]
        yield changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
        if node.value > 0:
            yield ast.Constant(node.value - 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float) and math.isfinite(node.value):
        yield ast.Constant(node.value * 10 if node.value else 1.0)
        yield ast.Constant(-node.value if node.value else -1.0)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        if node.attr == "T":
            yield node.value
        elif node.attr in SWAPPED_NAMES:
            yield ast.Attribute(node.value, SWAPPED_NAMES[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in SWAPPED_NAMES:
        yield ast.Name(SWAPPED_NAMES[node.id], node.ctx)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "inv":
        yield ast.Attribute(node, "T", ast.Load())
        yield node.args[0]
    elif isinstance(node, ast.Slice) and node.step is None and node.lower is not None and node.upper is not None:
        yield ast.Slice(node.lower, None, None)


# What says something and does nothing: messages, types, defaults of data classes are what the tests name anyway.
SPEECH = (ast.Raise, ast.Import, ast.ImportFrom, ast.AnnAssign, ast.JoinedStr)


def places(
    tree: ast.AST, where: tuple[str, ...] = (), around: ast.AST | None = None
) -> Iterator[tuple[tuple[str, ...], ast.AST | None, ast.AST, str, int | None]]:
    """(function, expression around it, parent, field, index) of everything that may be changed."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, SPEECH) and not (isinstance(child, ast.AnnAssign) and child.value is not None):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue  # a docstring
            if isinstance(child, ast.Call) and "warn" in ast.unparse(child.func):
                continue
            inner, outer = where, around
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = (*where, child.name)
            yield inner, around, tree, field, index
            if isinstance(child, ast.stmt):
                outer = None
            elif isinstance(child, ast.expr) and not isinstance(child, ast.Slice | ast.Tuple | ast.UnaryOp):
                outer = child
            yield from places(child, inner, outer)


def mutants_of(file: str, within: str = "") -> list[Mutant]:
    """Every mutant of a file below the package."""
    text = (ROOT / PACKAGE / file).read_text(encoding="utf-8")
    tree, found = ast.parse(text), []
    for where, around, parent, field, index in places(tree):
        if within and within not in where:
            continue
        value = getattr(parent, field)
        node = value if index is None else value[index]
        for variant in variants(node):
            # A number says little alone: what it stands in is named.
            shown = around if isinstance(node, ast.Constant) and around is not None else node
            before = ast.unparse(shown)
            _put(parent, field, index, variant)
            after = ast.unparse(ast.fix_missing_locations(variant if shown is node else shown))
            change = f"{before} -> {after}".replace("\n", " ")
            source = ast.unparse(tree)
            _put(parent, field, index, node)
            found.append(Mutant(file, getattr(node, "lineno", 0), ".".join(where) or "module", change, source))
    return found


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def rule_for(file: str) -> Rule | None:
    """The rule of a file, with the tests that there are."""
    rule = next((rule for rule in RULES if fnmatch.fnmatch(file, rule.files)), None)
    if rule is None:
        return None
    tests = [name.format(stem=Path(file).stem) for name in rule.tests]
    return replace(rule, tests=tuple(name for name in tests if (ROOT / "tests" / name).exists()))


def chosen(words: list[str], count: int, seed: int) -> dict[str, list[Mutant]]:
    """Mutants by file: as many of each file as it has its share of all, drawn with the seed; at least 3."""
    files = sorted(path.relative_to(ROOT / PACKAGE).as_posix() for path in (ROOT / PACKAGE).rglob("*.py"))
    known: dict[str, list[Mutant]] = {}
    for file in files:
        rule = rule_for(file)
        if rule is not None and (not words or any(word in file for word in words)):
            every = mutants_of(file, rule.within)
            if every:
                known[file] = every
    total = sum(math.sqrt(len(every)) for every in known.values())
    drawn = {}
    for file, every in known.items():
        share = max(3, round(count * math.sqrt(len(every)) / total))
        drawn[file] = random.Random(f"{seed} {file}").sample(every, min(share, len(every)))
    return drawn


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives one module the source of a mutant."""

    def __init__(self, mutant: Mutant, root: Path) -> None:
        parts = Path(mutant.file).with_suffix("").parts
        self.module = ".".join((PACKAGE, *(part for part in parts if part != "__init__")))
        self.path, self.source = str(root / PACKAGE / mutant.file), mutant.source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: Any) -> bytes:
        return self.source.encode()


def started(mutant: Mutant | None, rule: Rule, root: Path, processor_seconds: float) -> int:
    """Begin the tests of a rule in a process of their own: exit code 0 if all pass, 1 if not."""
    process = os.fork()
    if process:
        return process
    code = 3
    try:
        os.setsid()
        if processor_seconds:
            limit = int(processor_seconds) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        silent = os.open(os.devnull if mutant else root / "baseline.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        if mutant is not None:
            sys.meta_path.insert(0, Changed(mutant, root))
        import pytest

        given = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
        given += [f"--basetemp={root / 'temporary' / str(os.getpid())}", *(["-k", rule.select] if rule.select else [])]
        code = int(pytest.main([*given, *(f"tests/{name}" for name in rule.tests)]))
    except BaseException:
        code = 3
    finally:
        os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only files whose path contains one of these")
    parser.add_argument("--count", type=int, default=180, help="mutants in all (default 180)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="mutants at a time")
    given = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="")
    drawn = chosen(given.words, given.count, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        shared = ROOT.parent / "shared"
        if shared.exists():
            (root.parent / "shared").symlink_to(shared)
        (root / "temporary").mkdir()
        os.chdir(root)
        sys.path[:] = [
            str(root),
            str(root / "tests"),
            *(p for p in sys.path if Path(p or ".").resolve() != ROOT / "tests"),
        ]
        for name in LIBRARIES:
            importlib.import_module(name)
        assert importlib.util.find_spec(PACKAGE).origin.startswith(str(root))  # type: ignore[union-attr]
        importlib.import_module("torch").set_num_threads(1)
        return report(*run(drawn, root, given.jobs))


def run(
    drawn: dict[str, list[Mutant]], root: Path, jobs: int
) -> tuple[dict[str, list[Mutant]], dict[str, list[Mutant]]]:
    """Caught and survived, by file."""
    caught: dict[str, list[Mutant]] = defaultdict(list)
    survived: dict[str, list[Mutant]] = defaultdict(list)
    usual: dict[Rule, float] = {}
    for file in drawn:
        rule = rule_for(file)
        if rule is None or rule in usual:
            continue
        _, status, used = os.wait4(started(None, rule, root, 0), 0)
        if status:
            print((root / "baseline.log").read_text()[-3000:])
            raise SystemExit(f"the tests of {file} do not pass without any change: {rule.tests}, -k '{rule.select}'")
        usual[rule] = used.ru_utime + used.ru_stime
        print(f"{rule.files}: {usual[rule]:.1f} s of a processor", flush=True)
    every = [mutant for mutants in drawn.values() for mutant in mutants]
    waiting = [mutant for mutant in every if mutant.name not in EQUIVALENT]
    for name in sorted({mutant.name for mutant in every} & set(EQUIVALENT)):
        print(f"equivalent  {name}: {EQUIVALENT[name]}")
    running: dict[int, tuple[Mutant, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            rule = rule_for(mutant.file)
            assert rule is not None
            limit = 10 * usual[rule] + 20
            running[started(mutant, rule, root, limit)] = (mutant, time.monotonic())
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            for one, (_, begun) in running.items():
                if time.monotonic() - begun > 1800:  # asleep for ever
                    os.killpg(one, 9)
            time.sleep(0.02)
            continue
        if process not in running:
            continue
        mutant, _ = running.pop(process)
        shutil.rmtree(root / "temporary" / str(process), ignore_errors=True)
        lives = os.waitstatus_to_exitcode(status) == 0
        (survived if lives else caught)[mutant.file].append(mutant)
        print(f"{'SURVIVED' if lives else 'caught':8}  {mutant.file}:{mutant.line}: {mutant.change[:150]}", flush=True)
    return caught, survived


def report(caught: dict[str, list[Mutant]], survived: dict[str, list[Mutant]]) -> int:
    print(f"\n{'':45} caught survived")
    for file in sorted({*caught, *survived}):
        print(f"{file:45} {len(caught[file]):6} {len(survived[file]):8}")
    alive = [mutant for mutants in survived.values() for mutant in mutants]
    total = len(alive) + sum(map(len, caught.values()))
    share = 1 - len(alive) / max(total, 1)
    print(
        f"{'all':45} {total - len(alive):6} {len(alive):8}   {100 * share:.1f} %; {len(EQUIVALENT)} known as equivalent"
    )
    for mutant in alive:
        print(f"  {mutant.name}")
    return int(share < 0.95)


if __name__ == "__main__":
    sys.exit(main())
