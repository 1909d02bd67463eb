"""Which scans of a layout are domain a and which are domain b: by modality, and by the chosen contrast."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medcyclegan.cohort.cases import DOMAINS, no_case_id
from medcyclegan.cohort.contrasts import Joined, join_contrasts, matches, named_contrasts
from medcyclegan.cohort.layouts.scan import Scan, text
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.reader import case_id


@dataclass(frozen=True)
class Selection:
    """Which scans become a cohort.

    Attributes:
        root: a folder, or a CSV.
        modalities: "a" and "b" -> "MR" or "CT".
        layout: its name; None: detected.
        contrasts: "a" and "b" -> which kind of scans to take, a name with * and ?; needed where there are several.
            Several names, separated by commas, are joined as channels in this order, per patient; patients who lack
            one are left out with a note.
        patient: regular expression whose first group, in the path of a scan under the root without its ending, is the
            patient; None: as the layout derives it from names.
    """

    root: Path
    modalities: Mapping[str, str]
    layout: str | None = None
    contrasts: Mapping[str, str | None] = field(default_factory=dict)
    patient: str | None = None


@dataclass(frozen=True)
class Chosen:
    """The scans of both domains.

    Attributes:
        scans: those taken, each with its domain.
        contrasts: "a", "b" -> the names of the contrasts, in order, where several were joined.
        notes: scans left out, and patients who lack a contrast, one line each.
    """

    scans: list[Scan]
    contrasts: dict[str, tuple[str, ...]]
    notes: list[str]


def choose_scans(scans: Sequence[Scan], selection: Selection) -> Chosen:
    """Choose the scans of each domain from a layout, and join several contrasts.

    Raises:
        InputError: a domain has no scans or scans of several kinds; contrasts to be joined are ambiguous; a scan fits
            both domains; case ids are not unique or cannot serve as file names.
    """
    modalities, root = selection.modalities, selection.root
    if selection.patient is not None:
        scans = _named_patients(scans, root, selection.patient)
    wanted = selection.contrasts
    found = {domain: _of_domain(scans, domain, modalities[domain], wanted.get(domain)) for domain in DOMAINS}
    names = {domain: f"domain {domain} ({modalities[domain]})" for domain in DOMAINS}
    problems = [f"{names[domain]}: {problem}" for domain in DOMAINS for problem in found[domain].problems]
    images = {domain: {image for scan in found[domain].scans for image in scan.images} for domain in DOMAINS}
    if (both := images["a"] & images["b"]) and not problems:
        problems.append(
            f"{len(both)} scans fit both domains, for example {min(both)}; part them with --contrast-a and --contrast-b"
        )
    raise_all(problems, f"the cohort of {root} is not clear. It holds {_kinds(scans)}:")
    left = [scan for scan in scans if scan.image not in images["a"] | images["b"]]
    notes = [f"not taken: {_kinds(left)}"] if left else []
    notes += [
        f"{names[domain]}: left out, because a contrast is missing: {line}"
        for domain in DOMAINS
        for line in found[domain].incomplete
    ]
    taken = [replace(scan, domain=domain) for domain in DOMAINS for scan in found[domain].scans]
    _check_ids(taken)
    return Chosen(taken, {domain: found[domain].names for domain in DOMAINS if found[domain].names}, notes)


def _named_patients(scans: Iterable[Scan], root: Path, pattern: str) -> list[Scan]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the patient pattern '{pattern}' is no regular expression: {error}.") from None
    if expression.groups < 1:
        raise InputError(f"the patient pattern '{pattern}' has no group.", "Put what names the patient in ().")
    folder = root if root.is_dir() else root.parent
    named, problems = [], []
    for scan in scans:
        path = scan.image.relative_to(folder) if scan.image.is_relative_to(folder) else scan.image
        place = text(path.with_name(case_id(path)).as_posix())
        match = expression.search(place)
        if match and match.group(1):
            named.append(replace(scan, patient=match.group(1)))
        else:
            problems.append(place)
    raise_all(problems, f"the patient pattern '{pattern}' finds nobody in:")
    return named


def _of_domain(scans: Sequence[Scan], domain: str, modality: str, wanted: str | None) -> Joined:
    """The scans of one domain; the names of its contrasts only where several are joined."""
    patterns = named_contrasts(wanted, (s.kind for s in scans))
    fitting = [s for s in scans if s.domain in ("", domain) and s.modality in ("", modality)]
    if not patterns:
        # A scan of unknown domain and modality is taken by the name of its contrast only.
        fitting = [s for s in fitting if s.domain or s.modality]
        kinds = Counter(s.kind for s in fitting)
        problems = [] if kinds else ["no scans of this domain"]
        if len(kinds) > 1:
            found = ", ".join(f"{kind or 'unnamed'} ({count})" for kind, count in sorted(kinds.items()))
            problems.append(
                f"scans of several kinds: {found}; name one with --contrast-{domain}, several with * and "
                "?, or join them as channels with commas between their names"
            )
        return Joined(tuple(fitting), (), (), tuple(problems))
    shown = [[s for s in fitting if matches(s, pattern)] for pattern in patterns]
    problems = [
        f"no scans of this domain and contrast '{pattern}'"
        for pattern, found_scans in zip(patterns, shown, strict=True)
        if not found_scans
    ]
    if len(patterns) == 1:
        return Joined(tuple(shown[0]), (), (), tuple(problems))
    if modality != "MR":
        problems.append(f"contrasts are joined as channels of MR only, got {', '.join(patterns)}")
    joined = join_contrasts(fitting, patterns)
    problems += joined.problems
    if not joined.scans and not problems:
        problems.append(f"nobody has all of {', '.join(patterns)}: {'; '.join(joined.incomplete)}")
    return replace(joined, problems=tuple(problems))


def _kinds(scans: Iterable[Scan]) -> str:
    """A count per kind, for messages: "12 CT, 12 MR T1w"."""
    counts = Counter(" ".join(filter(None, (f"domain {s.domain}" * bool(s.domain), s.modality, s.kind))) for s in scans)
    return ", ".join(f"{count} scans of {kind or 'unknown kind'}" for kind, count in sorted(counts.items()))


def _check_ids(scans: Sequence[Scan]) -> None:
    """Case ids serve as file names, each once per domain and split."""
    raise_all(
        [f"'{s.case}': {s.image}: {reason}" for s in scans if (reason := no_case_id(s.case))],
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
