"""From the scans of a layout to the lists of a cohort: domains chosen, duplicates found, patients kept on one side.

Words used here. *Leak*: something of one patient on both sides of a split. *Pair*: the same patient in both domains on
one grid. The result becomes a `Cohort` at once, or a datalist on disk:

    {"about": {...},                                       how it was made
     "a": [{"image": "mr/001.nii.gz", "case": "001", "patient": "001", "site": "...", "fold": 0}, ...],
     "b": [...], "pairs": [...],                           training, and pairs for validation
     "val_a": [...], "val_b": [...],                       everything of the validation patients, paired or not
     "test_a": [...], "test_b": [...], "test_pairs": [...]}

Of several contrasts joined as channels, "image" and "contrast" (and "a" or "b" of a pair) are lists, in one order.
MONAI's `load_decathlon_datalist(file, is_segmentation=False, data_list_key="a")` reads each list; it makes a path of
every value that is the name of something beside the file, a patient's folder for example.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medcyclegan.atomic import write_json
from medcyclegan.cohort.contrasts import join_contrasts, named_contrasts, shows
from medcyclegan.cohort.datalist import Case, Cohort, Pair, check_cohort
from medcyclegan.cohort.duplicates import refuse_one_as_two, survey_images, without_copies
from medcyclegan.cohort.layouts import read_layout
from medcyclegan.cohort.layouts.scan import Scan, text
from medcyclegan.cohort.splits import SPLITS, fold_patients, split_patients, strata
from medcyclegan.documents import read_json
from medcyclegan.errors import InputError, few, raise_all
from medcyclegan.io.grid import on_one_grid
from medcyclegan.io.reader import case_id
from medcyclegan.progress import Progress
from medcyclegan.survey.volume import Survey

DOMAINS = ("a", "b")
_ENTRIES = {"train": ("a", "b"), "val": ("val_a", "val_b"), "test": ("test_a", "test_b")}


@dataclass(frozen=True)
class Assembly:
    """A cohort with its splits.

    Attributes:
        scans: those taken, each with domain and split.
        folds: patient -> fold, empty where there are none.
        pairs: (a, b) of one patient on one grid.
        failed: scans that cannot be read, with the reason.
        notes: what the user ought to know, one line each.
        about: how it was made, plain data.
        contrasts: "a", "b" -> the names of the contrasts, in order, where several were joined.
    """

    scans: tuple[Scan, ...]
    folds: Mapping[str, int]
    pairs: tuple[tuple[Scan, Scan], ...]
    failed: Mapping[Path, str]
    notes: tuple[str, ...]
    about: Mapping[str, Any]
    contrasts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def cohort(self) -> Cohort:
        """What is trained and validated on; scans that cannot be read are in it, for preparation to report."""
        a, b = (
            tuple(Case(s.case, s.images, s.body) for s in self.scans if (s.domain, s.split) == (domain, "train"))
            for domain in DOMAINS
        )
        pairs = tuple(Pair(x.case, x.images, y.images, x.body or y.body) for x, y in self.pairs if x.split == "val")
        return check_cohort(Cohort(a, b, pairs, contrasts=self.contrasts), str(self.about["root"]))

    def counts(self) -> dict[str, int]:
        """How many entries every list of the datalist has."""
        return {name: len(entries) for name, entries in self._lists(Path()).items()}

    def write(self, path: Path) -> None:
        """Write the datalist, atomically; paths below its folder are relative to it.

        Raises:
            InputError: `path` is something else than a datalist, such as the dataset.json of the cohort.
        """
        if path.exists() and not _is_datalist(path):
            raise InputError(f"{path} exists and is no datalist of this program.", "Give another name.")
        write_json(path, {"about": dict(self.about), **self._lists(path.parent)})

    def _lists(self, folder: Path) -> dict[str, list[dict[str, Any]]]:
        lists: dict[str, list[dict[str, Any]]] = {"a": [], "b": [], "pairs": []}
        readable = [scan for scan in self.scans if not _unread(scan, self.failed)]
        for split in SPLITS:
            for domain, name in zip(DOMAINS, _ENTRIES[split], strict=True):
                entries = [self._entry(s, folder) for s in readable if (s.domain, s.split) == (domain, split)]
                if entries or split == "train":
                    lists[name] = entries
        for a, b in self.pairs:
            entry = {
                "case": a.case,
                "patient": a.patient,
                "a": _relative_images(a, folder),
                "b": _relative_images(b, folder),
            }
            if body := a.body or b.body:
                entry["body"] = _relative(body, folder)
            if a.split == "train" and self.folds:
                lists["pairs"].append({**entry, "fold": self.folds[a.patient]})
            elif a.split != "train":
                lists.setdefault("pairs" if a.split == "val" else "test_pairs", []).append(entry)
        return lists

    def _entry(self, scan: Scan, folder: Path) -> dict[str, Any]:
        entry: dict[str, Any] = {"image": _relative_images(scan, folder), "case": scan.case}
        kind = list(self.contrasts[scan.domain]) if len(scan.images) > 1 else scan.kind
        told = {"patient": scan.patient, "contrast": kind, "site": scan.site}
        entry |= {key: value for key, value in told.items() if value}
        if scan.body:
            entry["body"] = _relative(scan.body, folder)
        if scan.split == "train" and self.folds:
            entry["fold"] = self.folds[scan.patient]
        return entry


def assemble(
    root: Path,
    *,
    layout: str | None = None,
    modalities: Mapping[str, str],
    contrasts: Mapping[str, str | None] | None = None,
    patient: str | None = None,
    val: float = 0.0,
    test: float = 0.0,
    folds: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Assembly:
    """Read a layout and make a cohort of it.

    Args:
        root: a folder, or a CSV.
        layout: its name; by default the one that fits.
        modalities: "a" and "b" -> "MR" or "CT".
        contrasts: "a" and "b" -> which kind of scans to take, a name with * and ?; needed where there are several.
            Several names with commas between them are joined as channels in their order, per patient; who lacks one
            is left out and told.
        patient: regular expression whose first group, in the path of a scan under the root without its ending, is the
            patient; by default names tell as far as the layout knows.
        val, test: shares of the patients to split off; 0 keeps the split of the layout.
        folds: k for cross-validation, without `val`.
        seed: of the split.
        progress: watches the reading of every volume, which finds duplicates.

    Raises:
        InputError: no layout fits; a domain has no scans or scans of several kinds; a patient or a copy of a scan is
            on two sides; the same scan is in both domains; contrasts to be joined are ambiguous; a split is not
            possible.
    """
    found = read_layout(root, layout)
    scans = _named_patients(found.scans, root, patient) if patient is not None else list(found.scans)
    taken, names, incomplete = _in_domains(scans, modalities, contrasts or {}, root)
    notes = [*found.notes(), *_not_taken(scans, taken), *incomplete]
    _refuse_twins(taken)
    taken = _inherited(taken)
    _refuse_leaks(taken)
    surveys, failed = survey_images((image for scan in taken for image in scan.images), progress=progress)
    refuse_one_as_two(taken, surveys)
    taken, merged = without_copies(taken, surveys)
    # What cannot be read validates nothing and tests nothing.
    unread = [replace(scan, split=scan.split or "train") for scan in taken if _unread(scan, failed)]
    taken, where = _split(
        [scan for scan in taken if not _unread(scan, failed)], val=val, test=test, folds=folds, seed=seed
    )
    _require_training(taken, failed)
    taken += unread
    about: dict[str, Any] = {"root": str(root), "layout": found.layout, "reason": found.reason, "seed": seed}
    about |= {"val": val, "test": test, "folds": folds, "modalities": dict(modalities)}
    about |= {"contrasts": {d: c for d, c in (contrasts or {}).items() if c}}
    pairs, unpaired = _pairs(taken, surveys, where)
    return Assembly(tuple(taken), where, pairs, failed, (*notes, *merged, *unpaired), about, names)


def _named_patients(scans: Iterable[Scan], root: Path, pattern: str) -> list[Scan]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the patient pattern '{pattern}' is no regular expression: {error}.") from None
    if expression.groups < 1:
        raise InputError(f"the patient pattern '{pattern}' has no group.", "Put what names the patient in ().")
    named, problems = [], []
    for scan in scans:
        folder = root if root.is_dir() else root.parent
        path = scan.image.relative_to(folder) if scan.image.is_relative_to(folder) else scan.image
        place = text(path.with_name(case_id(path)).as_posix())
        match = expression.search(place)
        if not match or not match.group(1):
            problems.append(place)
        else:
            named.append(replace(scan, patient=match.group(1)))
    raise_all(problems, f"the patient pattern '{pattern}' finds nobody in:")
    return named


def _in_domains(
    scans: Sequence[Scan], modalities: Mapping[str, str], contrasts: Mapping[str, str | None], root: Path
) -> tuple[list[Scan], dict[str, tuple[str, ...]], list[str]]:
    """The scans that are taken, each with its domain; the names of contrasts that were joined; who lacks one."""
    taken: list[Scan] = []
    joined: dict[str, tuple[str, ...]] = {}
    problems, incomplete = [], []
    for domain in DOMAINS:
        wanted = named_contrasts(contrasts.get(domain), (s.kind for s in scans))
        # What nobody says anything of is taken only by its name.
        known = [s for s in scans if s.domain in ("", domain) and s.modality in ("", modalities[domain])]
        chosen = [s for s in known if s.domain or s.modality or wanted]
        name = f"domain {domain} ({modalities[domain]})"
        problems += [
            f"{name}: no scans of this domain and contrast '{pattern}'"
            for pattern in wanted
            if not any(shows(s, pattern) for s in chosen)
        ]
        if wanted:
            chosen = [s for s in chosen if any(shows(s, pattern) for pattern in wanted)]
        elif not chosen:
            problems.append(f"{name}: no scans of this domain")
        if len(wanted) > 1:
            if modalities[domain] != "MR":
                problems.append(f"{name}: contrasts are joined as channels of MR only, got {', '.join(wanted)}")
            found = join_contrasts(chosen, wanted)
            chosen, joined[domain] = list(found.scans), found.names
            incomplete += [f"{name}: left out, because a contrast is missing: {line}" for line in found.incomplete]
            problems += [f"{name}: {line}" for line in found.problems]
            if not chosen and not problems:
                problems.append(f"{name}: nobody has all of {', '.join(wanted)}: {'; '.join(found.incomplete)}")
        kinds = Counter(s.kind for s in chosen)
        if len(kinds) > 1 and not wanted:
            told = ", ".join(f"{kind or 'unnamed'} ({count})" for kind, count in sorted(kinds.items()))
            problems.append(
                f"{name}: scans of several kinds: {told}; name one with --contrast-{domain}, several with * and "
                "?, or join them as channels with commas between their names"
            )
        taken += [replace(s, domain=domain) for s in chosen]
    double = {i for s in taken if s.domain == "a" for i in s.images} & {
        i for s in taken if s.domain == "b" for i in s.images
    }
    if double and not problems:
        problems.append(
            f"{len(double)} scans fit both domains, for example {min(double)}; "
            "part them with --contrast-a and --contrast-b"
        )
    raise_all(problems, f"the cohort of {root} is not clear. It holds {_kinds(scans)}:")
    return taken, joined, incomplete


def _kinds(scans: Iterable[Scan]) -> str:
    """What there is, for messages: "12 CT, 12 MR T1w"."""
    counts = Counter(" ".join(filter(None, (f"domain {s.domain}" * bool(s.domain), s.modality, s.kind))) for s in scans)
    return ", ".join(f"{count} scans of {kind or 'unknown kind'}" for kind, count in sorted(counts.items()))


def _not_taken(scans: Sequence[Scan], taken: Sequence[Scan]) -> list[str]:
    used = {image for scan in taken for image in scan.images}
    left = [scan for scan in scans if scan.image not in used]
    return [f"not taken: {_kinds(left)}"] if left else []


def _refuse_twins(scans: Sequence[Scan]) -> None:
    """Case ids serve as file names, once per domain and split."""
    raise_all(
        [f"'{s.case}': {s.image}" for s in scans if Path(s.case).name != s.case or s.case.startswith(".")],
        "these cannot be case ids, they must serve as file names:",
    )
    groups = defaultdict(list)
    for scan in scans:
        groups[scan.domain, scan.split, scan.case].append(scan)
    twins = [group for group in groups.values() if len(group) > 1]
    raise_all(
        [
            f"domain {g[0].domain}, '{g[0].case}': {', '.join(scan.kind for scan in g)}"
            for g in twins
            if len({scan.kind for scan in g}) == len(g)
        ],
        "cases have several contrasts, and a case is one volume: under one name, contrasts are not joined as channels. "
        "Name one with --contrast-a or --contrast-b, or each with commas between them (T1w,T2w) to join them:",
    )
    raise_all(
        [f"domain {g[0].domain}, '{g[0].case}': {', '.join(str(scan.image) for scan in g)}" for g in twins],
        "case ids occur more than once; rename the files, or give the cases ids in a CSV:",
    )


def _unread(scan: Scan, failed: Mapping[Path, str]) -> bool:
    return any(image in failed for image in scan.images)


def _inherited(scans: Sequence[Scan]) -> list[Scan]:
    """Scans without a split get that of their patient, so that nobody is parted."""
    told = {s.patient: s.split for s in scans if s.split and s.patient}
    return [replace(s, split=told.get(s.patient, "")) if not s.split else s for s in scans]


def _refuse_leaks(scans: Sequence[Scan]) -> None:
    sides = defaultdict(lambda: defaultdict(list))  # type: ignore[var-annotated]
    for scan in scans:
        if scan.patient and scan.split:
            sides[scan.patient][scan.split].append(str(scan.image))
    raise_all(
        [
            f"patient '{patient}': " + "; ".join(f"{split}: {', '.join(found[split][:2])}" for split in sorted(found))
            for patient, found in sorted(sides.items())
            if len(found) > 1
        ],
        "a patient may be on one side only, but some are in more than one of train, val and test. Move them; or, if "
        "the same name does not mean the same patient, say what does with --patient ('(.*)': every file is another "
        "patient):",
    )


def _split(
    scans: Sequence[Scan], *, val: float, test: float, folds: int | None, seed: int
) -> tuple[list[Scan], dict[str, int]]:
    """The scans with their split, and patient -> fold."""
    asked = [name for name, share in (("val", val), ("test", test)) if share]
    if folds is not None and val:
        raise InputError("with folds, each of them validates once.", "Leave out val, or the folds.")
    there = {scan.split for scan in scans}
    if both := [name for name in (*asked, *(["val"] if folds is not None else [])) if name in there]:
        raise InputError(
            f"the layout has its own {' and '.join(dict.fromkeys(both))} set.",
            "Keep it and leave out the share, or list the volumes in a CSV without a split.",
        )
    scans = [replace(scan, split=scan.split or "train") for scan in scans]
    free = [scan for scan in scans if scan.split == "train"]
    if not asked and folds is None:
        return scans, {}
    if nameless := [str(scan.image) for scan in free if not scan.patient]:
        raise InputError(
            f"the names of {len(nameless)} pictures do not say whose they are, for example {nameless[0]}: slices of "
            "one patient could be parted.",
            "Say what names the patient with --patient REGEX ('(.*)': every file is another patient).",
        )
    stratum = strata((scan.patient, scan.domain, scan.site) for scan in free)
    split = split_patients(stratum, val=val, test=test, seed=seed)
    scans = [replace(scan, split=split[scan.patient]) if scan.split == "train" else scan for scan in scans]
    if folds is None:
        return scans, {}
    left = {patient: stratum[patient] for patient, side in split.items() if side == "train"}
    return scans, fold_patients(left, folds=folds, seed=seed)


def _require_training(scans: Sequence[Scan], failed: Mapping[Path, str]) -> None:
    """Somebody of each domain is trained on."""
    trained = {scan.domain for scan in scans if scan.split == "train"}
    raise_all(
        [
            f"domain {domain}: {sum(scan.domain == domain for scan in scans)} scans, all of which validate or test"
            for domain in DOMAINS
            if domain not in trained
        ]
        + ([f"{image} cannot be read: {reason}" for image, reason in failed.items()] if len(trained) < 2 else []),
        "nothing is left to train on; take smaller shares or another seed, or give more volumes:",
    )


def _pairs(
    scans: Sequence[Scan], surveys: Mapping[Path, Survey], folds: Mapping[str, int]
) -> tuple[tuple[tuple[Scan, Scan], ...], list[str]]:
    """(a, b) of one patient on one grid, where there is one such b only; and who is no pair although both were scanned.

    The latter of patients who validate or test.
    """
    by_patient = defaultdict(list)
    for scan in scans:
        if scan.domain == "b" and scan.patient and scan.image in surveys:
            by_patient[scan.patient].append(scan)
    found = []
    alone: dict[str, list[str]] = defaultdict(list)
    for a in scans:
        if a.domain != "a" or not a.patient or a.image not in surveys:
            continue
        fitting = [b for b in by_patient[a.patient] if _on_one_grid(surveys[a.image], surveys[b.image])]
        if len(fitting) == 1:
            found.append((a, fitting[0]))
        elif by_patient[a.patient] and (a.split != "train" or folds):
            alone["several scans of b lie" if fitting else "no scan of b lies"].append(a.case)
    notes = [
        f"no pairs for validation or testing, because {reason} on the grid of that of a: {few(cases)}"
        for reason, cases in alone.items()
    ]
    return tuple(found), notes


def _on_one_grid(a: Survey, b: Survey) -> bool:
    return a.grid is not None and b.grid is not None and on_one_grid(a.grid, b.grid)


def _relative_images(scan: Scan, folder: Path) -> str | list[str]:
    """One file, or a list of the files of several contrasts."""
    names = [_relative(image, folder) for image in scan.images]
    return names if len(names) > 1 else names[0]


def _is_datalist(path: Path) -> bool:
    try:
        content = read_json(path, f"datalist {path}")
    except InputError:
        return False
    return isinstance(content, dict) and {"about", "a", "b"} <= set(content)


def _relative(path: Path, folder: Path) -> str:
    whole, above = path.absolute(), folder.absolute()
    return whole.relative_to(above).as_posix() if whole.is_relative_to(above) else str(whole)
