"""Which prediction belongs to which reference: by case id, never by order.

The rule. A file belongs to the reference whose id is exactly its own. Failing that, one of the known suffixes is
removed from either id, or the prefix of the SynthRAD challenges: `p01_sct`, `sct_p01`, `p01_ct`, `p01_mr` and
`p01_mask` all mean the case `p01`. Anything ambiguous or left over is refused, with every name.

Words used here. *Role*: what a file is for: pred, ref, mask, source (the MR, which only a report shows), pred_labels,
ref_labels (label maps) and target (voxels of the range errors). *SynthRAD layout*: a folder per patient, at any
depth, with `ct`, `mr` or `cbct`, `mask` and, for predictions, `sct`. *Template*: a path below the folder of a role with
{case} once and any number of *.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medcyclegan.documents import read_table
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.dicom.files import split_choice
from medcyclegan.io.listing import volumes_at
from medcyclegan.io.tree import Tree, case_id, is_volume, join, named_volumes

SUFFIXES = ("_sct", "_ct", "_mr", "_mask")
PREFIX = "sct_"
_SYNTHRAD = {"source": ("mr", "cbct")}  # names of files of a role that is not called so itself
ROLES = ("pred", "ref", "mask", "source", "pred_labels", "ref_labels", "target")
_WORDS = {
    "pred": "prediction",
    "ref": "reference",
    "pred_labels": "label map of the prediction",
    "ref_labels": "label map of the reference",
}


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case; None where there is none.

    Attributes:
        pred: synthetic CT, HU.
        ref: reference CT, HU.
        mask: where it is graded.
        source: MR, any unit.
        pred_labels, ref_labels: label maps.
        target: mask of the voxels of the range errors.
    """

    pred: Path
    ref: Path
    mask: Path | None = None
    source: Path | None = None
    pred_labels: Path | None = None
    ref_labels: Path | None = None
    target: Path | None = None


@dataclass(frozen=True)
class Pairing:
    """The cases to score.

    Attributes:
        cases: case id to its files, in the order of the references.
        missing: references without a prediction, if that was allowed.
        unmatched: predictions without a reference, if that was allowed.
    """

    cases: Mapping[str, CaseFiles]
    missing: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def pair(
    references: Iterable[str],
    others: Iterable[str],
    kind: str,
    *,
    spare_allowed: bool = False,
    missing_allowed: bool = False,
) -> dict[str, str]:
    """Match one of `others` to every reference.

    Args:
        references: case ids of the references.
        others: case ids of the predictions or masks.
        kind: what `others` are, in the singular, for messages: "prediction" or "mask".
        spare_allowed: accept `others` that belong to no reference.
        missing_allowed: accept references to which none of `others` belongs.

    Returns:
        From reference id to the id of its counterpart, in the order of `references`.

    Raises:
        InputError: a reference without a counterpart or a counterpart without a reference, unless that is allowed, or
            an ambiguous one; all of them are listed.
    """
    claims: dict[str, list[str]] = {reference: [] for reference in references}
    alike: dict[str, list[str]] = defaultdict(list)
    for reference in claims:
        alike[_case(reference)].append(reference)
    spare, ambiguous = [], []
    for other in others:
        owners = [other] if other in claims else alike.get(_case(other), [])
        if not owners:
            spare.append(f"{kind} '{other}' belongs to no reference")
        if len(owners) > 1:
            ambiguous.append(f"{kind} '{other}' may belong to any of the references {_quoted(owners)}")
        for reference in owners:
            claims[reference].append(other)
    missing = [f"reference '{reference}' has no {kind}" for reference, found in claims.items() if not found]
    ambiguous += [
        f"reference '{reference}' is matched by more than one {kind}: {_quoted(found)}"
        for reference, found in claims.items()
        if len(found) > 1
    ]
    raise_all(
        [*([] if spare_allowed else spare), *([] if missing_allowed else missing), *ambiguous],
        f"Cases are paired by name: '<case>' exactly, or '<case>' with one of {', '.join(SUFFIXES)} or '{PREFIX}' "
        "before it. Rename or remove these files, or tell how they are named with --pattern:",
    )
    return {reference: found[0] for reference, found in claims.items() if found}


def find_cases(
    given: Mapping[str, str | os.PathLike[str] | None],
    templates: Sequence[str] = (),
    *,
    table: Path | None = None,
    allow_missing: bool = False,
) -> Pairing:
    """Find and pair the files of all roles before anything is read.

    Args:
        given: role to a folder or, for a single case, a file; `pred` and `ref` are needed. None: there is none.
        templates: `ROLE=TEMPLATE`, or a template alone for the predictions; roles without one hold their files directly
            or, for `pred` and `ref`, in the SynthRAD layout.
        table: a CSV with the files of every case instead of all these, see `cases_from_csv`.
        allow_missing: references without a prediction, and predictions without a reference, are listed in the result
            instead of refused.

    Raises:
        InputError: a path that does not exist, a template that cannot be used, a role without files, or files that do
            not pair; all of them are listed.
    """
    folders = {role: Path(path) for role, path in given.items() if path is not None}
    if table is not None:
        if folders or templates:
            raise InputError(f"The table {table} names all files; give no folders ({', '.join(folders)}) or patterns.")
        return cases_from_csv(table, allow_missing=allow_missing)
    if not {"pred", "ref"} <= folders.keys():
        raise InputError("Give the predictions and the references, or a table with --pairs.")
    if ("pred_labels" in folders) != ("ref_labels" in folders):
        raise InputError("Label maps are compared in pairs: give those of the predictions and of the references.")
    absent = [f"{role}: {path}" for role, path in folders.items() if not split_choice(path)[0].exists()]
    raise_all(absent, "These do not exist:")
    patterns = _templates(templates, folders)
    references = _files(folders["ref"], "ct", patterns.get("ref"))
    predictions = _files(folders["pred"], "sct", patterns.get("pred"))
    if references and all(map(_is_synthetic, references)) and not any(map(_is_synthetic, predictions)):
        raise InputError(
            f"By their names the files of {folders['ref']}, given as references, are synthetic, and those of "
            f"{folders['pred']}, given as predictions, are not.",
            "Exchange the two; or if the references are called so, say --pattern 'ref={case}_sct.nii.gz', for example.",
        )
    one_reference = _is_one(folders["ref"], references)
    if one_reference and _is_one(folders["pred"], predictions):
        chosen = dict(zip(references, predictions, strict=True))
    else:
        allowed = {"spare_allowed": allow_missing, "missing_allowed": allow_missing}
        chosen = pair(references, predictions, "prediction", **allowed)
        if not chosen:
            raise InputError(f"No prediction in {folders['pred']} belongs to a reference in {folders['ref']}.")
    cases = {name: CaseFiles(predictions[other], references[name]) for name, other in chosen.items()}
    if "ref" not in patterns and _patients(folders["ref"], "ct"):
        cases = _with_companions(cases)
    for role in (role for role in ROLES[2:] if role in folders):
        files = _files(folders[role], role, patterns.get(role))
        if one_reference and _is_one(folders[role], files):
            own = dict(zip(cases, files, strict=True))
        else:
            # Only pictures need a source, so a case may be without.
            own = pair(cases, files, _WORDS.get(role, role), spare_allowed=True, missing_allowed=role == "source")
        cases |= {name: replace(cases[name], **{role: files[other]}) for name, other in own.items()}
    missing = [name for name in references if name not in chosen]
    unmatched = [name for name in predictions if name not in {*chosen.values()}]
    return Pairing(cases, tuple(missing), tuple(unmatched))


def cases_from_csv(path: Path, *, allow_missing: bool = False) -> Pairing:
    """Read the files of all cases from a table.

    Args:
        path: CSV with the columns case, pred and ref, and optionally mask, source, pred_labels, ref_labels and target;
            paths are relative to its folder. An empty cell means none.
        allow_missing: a case whose prediction is empty or absent is listed in the result instead of refused.

    Raises:
        InputError: it cannot be read, columns are missing or unknown, a case is empty or repeated, or files are absent;
            all of them are listed.
    """
    columns, rows = read_table(path, f"table of pairs {path}")
    allowed = ("case", *ROLES)
    if not {"case", "pred", "ref"} <= set(columns) or set(columns) - set(allowed):
        raise InputError(
            f"The table of pairs {path} has the columns {', '.join(columns) or '(none)'}.",
            f"It needs case, pred and ref, and may have {', '.join(ROLES[2:])}.",
        )
    cases: dict[str, CaseFiles] = {}
    missing: list[str] = []
    problems = []
    for number, row in enumerate(rows, start=2):
        name = row["case"].strip()
        found = {role: path.parent / row[role] for role in ROLES if row.get(role)}
        if not name or name in cases or name in missing:
            problems.append(f"line {number}: the case {f'{name!r} is repeated' if name else 'is empty'}")
            continue
        absent = [role for role in found if not _is_there(found[role])]
        if "pred" not in found or "pred" in absent:
            missing.append(name)
            absent = [role for role in absent if role != "pred"]
            if not allow_missing:
                where = f" ({found['pred']} does not exist)" if "pred" in found else ""
                problems.append(f"line {number}: reference '{name}' has no prediction{where}")
        problems += [f"line {number}: there is no {found[role]}" for role in absent]
        if "ref" not in found:
            problems.append(f"line {number}: the case '{name}' has no reference")
        elif name not in missing and not absent:
            cases[name] = CaseFiles(**found)
    raise_all(problems, f"The table of pairs {path} cannot be used:")
    if not cases:
        raise InputError(f"The table of pairs {path} holds no case that can be graded.")
    raise_all(
        [name for name, files in cases.items() if (files.pred_labels is None) != (files.ref_labels is None)],
        "Label maps are compared in pairs, of the prediction and of the reference. These cases have only one:",
    )
    return Pairing(cases, tuple(missing))


def _is_there(path: Path) -> bool:
    try:
        return split_choice(path)[0].exists()
    except OSError:  # the name is too long
        return False


def _is_synthetic(name: str) -> bool:
    return name.lower().startswith(PREFIX) or name.lower().endswith(("_sct", "_smr"))


def _case(identifier: str) -> str:
    for suffix in SUFFIXES:
        if identifier.endswith(suffix) and identifier != suffix:
            return identifier.removesuffix(suffix)
    return identifier.removeprefix(PREFIX) or identifier


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _files(path: Path, stem: str, template: str | None) -> dict[str, Path]:
    """Case id to file."""
    if template is not None:
        return _by_template(path, template)
    return _patients(path, stem) or volumes_at(path)


def _is_one(path: Path, volumes: Mapping[str, Path]) -> bool:
    """True for a path that is a volume itself, a DICOM folder included, and no folder of volumes."""
    return list(volumes.values()) == [path]


def _patients(folder: Path, stem: str) -> dict[str, Path]:
    """Patient to its `stem` volume, in the SynthRAD layout; empty if the folder is not laid out so."""
    tree = Tree(split_choice(folder)[0])
    if any(map(is_volume, tree.files())):
        return {}
    found: dict[str, Path] = {}
    incomplete, twice = [], []
    wanted = _SYNTHRAD.get(stem, (stem,))
    for place, volumes in named_volumes(tree, {*wanted, *_SYNTHRAD["source"]}).items():
        patient = place.rpartition("/")[2]
        volume = next((volumes[name] for name in wanted if name in volumes), None)
        if volume is None:
            # Reference patients with an MR but no CT are missing references, not fewer patients.
            incomplete.append(patient)
        elif patient in found:
            twice.append(f"{patient}: {found[patient]} and {volume}")
        else:
            found[patient] = volume
    raise_all(twice, f"{folder} is in the SynthRAD layout, and holds these cases more than once; give one folder each:")
    if found and incomplete:
        raise InputError(f"{folder} is in the SynthRAD layout, but there is no {stem} of {_quoted(incomplete)}.")
    return found


def _with_companions(cases: dict[str, CaseFiles]) -> dict[str, CaseFiles]:
    """With the mask and the source that lie beside each reference."""
    beside = {
        name: {case_id(path).lower(): path for path in Tree(files.ref.parent).contents().volumes}
        for name, files in cases.items()
    }
    without = [name for name, volumes in beside.items() if "mask" not in volumes]
    if without and len(without) < len(cases):
        raise InputError(f"Some patients of the SynthRAD layout have a mask, but {_quoted(without)} have none.")
    return {
        name: replace(files, mask=beside[name].get("mask"), source=beside[name].get("mr") or beside[name].get("cbct"))
        for name, files in cases.items()
    }


def _templates(given: Sequence[str], folders: Mapping[str, Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    problems = []
    for text in given:
        role, equals, template = text.partition("=")
        if not equals or role not in ROLES:
            role, template = "pred", text
        if template.count("{case}") != 1:
            problems.append(f"'{text}' does not have {{case}} exactly once")
        elif Path(template).is_absolute() or ".." in Path(template).parts:
            problems.append(f"'{text}' leaves the folder it is for")
        elif role in found:
            problems.append(f"'{text}': there is another one for {role}")
        elif role not in folders or not folders[role].is_dir():
            problems.append(f"'{text}': no folder is given for {role}")
        else:
            found[role] = template
    raise_all(
        problems,
        "A pattern is [ROLE=]PATH, for instance pred={case}/sct.mha, with {case} once and * for anything; "
        f"roles are {', '.join(ROLES)}. These cannot be used:",
    )
    return found


def _by_template(folder: Path, template: str) -> dict[str, Path]:
    expression = re.compile(re.escape(template).replace(r"\*", "[^/]*").replace(r"\{case\}", "([^/]+)"))
    tree = Tree(folder)
    found: dict[str, list[Path]] = defaultdict(list)
    for place in tree.every_folder():
        for file in (join(place, name) for name in tree.files(place)):
            if (match := expression.fullmatch(file)) and tree.path(file).is_file():
                found[match[1]].append(tree.path(file))
    if not found:
        raise InputError(f"No file in {folder} fits the pattern '{template}'.")
    raise_all(
        [f"{name}: {_quoted([path.name for path in paths])}" for name, paths in found.items() if len(paths) > 1],
        f"The pattern '{template}' fits more than one file of the same case in {folder}:",
    )
    return {name: paths[0] for name, paths in found.items()}
