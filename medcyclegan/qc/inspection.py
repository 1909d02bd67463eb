"""Look at every volume of a cohort before it is used: facts, findings, a page, and copies of what can be mended.

Files are measured in parallel processes, each of which holds one volume at a time; only facts come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medcyclegan.cohort.datalist import Cohort, contrast_names
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.listing import Listing, look_below, look_in
from medcyclegan.io.reader import case_id
from medcyclegan.machine import cores
from medcyclegan.process_pool import ProcessPool
from medcyclegan.progress import Progress, Silent
from medcyclegan.qc import ERROR, RULES, SEVERITIES, Finding, Volume, findings_of, kinds, of_volume
from medcyclegan.qc.fixes import mend, target_name
from medcyclegan.qc.page import Row, VolumeEntry, write_inspection_page
from medcyclegan.qc.survey import PERCENTILES, Survey, measure, measure_header

MODALITIES = ("MR", "CT")
COLUMNS = (
    "volume",
    "shape",
    "spacing mm",
    "axes",
    "tilt °",
    "stored",
    f"values at {', '.join(f'{p} %' for p in PERCENTILES)}",
    "body mm",
)
_MOST_THUMBNAILS = 300
_MOST_ROWS = 100  # of the table in a terminal
_FEW = 4


@dataclass(frozen=True)
class Fix:
    """A mended copy."""

    source: Path
    target: Path
    done: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What an inspection told.

    Attributes:
        members: every volume that was looked at, domain by domain in order of path.
        findings: errors first, then warnings, then notes.
        left_out: files and folders that are no volumes.
        fixes: copies that were written.
        headers_only: whether voxels were not read.
    """

    members: tuple[Volume, ...]
    findings: tuple[Finding, ...]
    left_out: tuple[Path, ...]
    fixes: tuple[Fix, ...]
    headers_only: bool

    def of_severity(self, severity: str) -> list[Finding]:
        return [s for s in self.findings if s.severity == severity]

    @property
    def sound(self) -> bool:
        """True if there is no error."""
        return not self.of_severity(ERROR)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Of the patient it holds what the names of the files say, and nothing else."""
        return {
            "volumes": [{"domain": m.domain, "case": m.case, **m.survey.to_dict()} for m in self.members],
            "findings": [
                {
                    "severity": s.severity,
                    "code": s.code,
                    "domain": s.domain,
                    "file": s.file,
                    "message": s.message,
                    "remedy": s.remedy,
                    "fixable": s.fixable,
                }
                for s in self.findings
            ],
            "counts": {severity: len(self.of_severity(severity)) for severity in SEVERITIES},
            "left_out": [str(path) for path in self.left_out],
            "fixed": [{"source": str(f.source), "target": str(f.target), "done": list(f.done)} for f in self.fixes],
            "headers_only": self.headers_only,
        }


def inspect_cohort(
    domains: Mapping[str, Path],
    paths: Sequence[Path] = (),
    *,
    modalities: tuple[str, str] = MODALITIES,
    headers_only: bool = False,
    output: Path | None = None,
    fix: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    cohort: Cohort | None = None,
) -> Inspection:
    """Look at every volume of the domains and under the paths.

    Args:
        domains: "a" and "b", one of them or none, -> folder of volumes.
        paths: further volumes and folders, of no domain and unknown modality; sub-folders are searched.
        modalities: of a and b, "MR" or "CT".
        headers_only: do not read voxels; thousands of files per minute, and only what headers tell.
        output: an HTML page to write.
        fix: a new or empty folder for mended copies, `a/`, `b/` and files of no domain in it; see `qc.fixes`. Nothing
            is changed in place, and copies are written of what was mended only.
        workers: processes; 0: one per core. With more than one, a script needs the usual
            `if __name__ == "__main__":`.
        progress: watches the files.
        cohort: what to look at instead of folders of the domains. Contrasts are compared with their own kind: the first
            is the domain "a" or "b", a further one is shown as "a T2w".

    Raises:
        InputError: nothing to look at, a folder without volumes, or an output that cannot be used. What is wrong with
            single volumes is a result and no exception.
    """
    progress = progress or Silent()
    if cohort is not None and domains:
        raise InputError(f"a cohort and folders of the domains ({', '.join(domains)}) are given.", "Give one of them.")
    gathered: dict[str, Listing] = _of_cohort(cohort) if cohort is not None else {}
    _check(domains, paths, modalities, headers_only, output, fix, gathered)
    of_domain = dict(zip("ab", modalities, strict=True))
    of_domain |= {domain: of_domain[domain[0]] for domain in gathered}
    problems = []
    for domain, folder in domains.items():
        try:
            gathered[domain] = look_in(folder)
        except InputError as error:
            problems.append(str(error))
    if paths:
        try:
            gathered[""] = look_below(paths)
        except InputError as error:
            problems.append(str(error))
    raise_all(problems, "there is nothing to inspect:") if len(problems) > 1 else None
    if problems:
        raise InputError(problems[0])

    places = [(domain, file) for domain, found in gathered.items() for file in found.volumes]
    unusable = [(domain, file, why) for domain, found in gathered.items() for file, why in found.unusable.items()]
    job = measure_header if headers_only else partial(measure, thumbnail=output is not None)
    # Starting a process takes as long as reading a few volumes.
    with ProcessPool((workers or cores()) if len(places) > _FEW else 1, progress) as pool:
        tasks = {index: (file, job) for index, (_, file) in enumerate(places)}
        measured = dict(pool.each(_attempt, tasks, "inspecting volumes"))
    members = [
        Volume(domain, case_id(file), of_domain.get(domain), _survey(file, measured[index]))
        for index, (domain, file) in enumerate(places)
    ]
    members += [
        Volume(domain, case_id(file), of_domain.get(domain), Survey(file, problem=f"{file}: {why}. Mend or remove it."))
        for domain, file, why in unusable
    ]
    findings = findings_of(members, of_domain)
    fixes = _fix(members, fix, progress) if fix is not None else ()
    left_out = tuple(path for found in gathered.values() for path in found.left_out)
    result = Inspection(tuple(members), tuple(findings), left_out, tuple(fixes), headers_only)
    if output is not None:
        where = domains or {d: Path(f"{len(found.volumes)} volumes") for d, found in gathered.items() if d}
        _write_page(result, output, of_domain, where)
    return result


def _of_cohort(cohort: Cohort) -> dict[str, Listing]:
    """The volumes of a cohort, pairs included, by domain and contrast."""
    found: dict[str, Listing] = {}
    for domain in ("a", "b"):
        cases = [case.images for case in getattr(cohort, domain)] + [pair.images[domain] for pair in cohort.pairs]
        names = cohort.contrasts.get(domain) or contrast_names(len(cases[0]))
        for number, name in enumerate(names):
            found[f"{domain} {name}" if number else domain] = Listing([images[number] for images in cases])
    return found


def cells(member: Volume) -> tuple[str, ...]:
    """A volume's row under `COLUMNS`; "–" where nothing is known."""
    facts = member.survey

    def numbers(values: Iterable[float] | None, digits: str = ".3g", between: str = " x ") -> str:
        return between.join(format(value, digits) for value in values) if values else "–"

    return (
        str(facts.file),
        numbers(facts.shape, "d"),
        numbers(facts.spacing),
        facts.axes or "–",
        "–" if facts.tilt_degrees is None else f"{facts.tilt_degrees:.0f}",
        facts.stored or "–",
        numbers(facts.percentiles, ".4g", ", "),
        numbers(facts.anatomy.extent_mm if facts.anatomy else None, ".0f"),
    )


def lines(result: Inspection) -> list[str]:
    """The result for a terminal: the volumes, then what is suspicious, worst first and each kind once, then the counts.

    Long lists are cut, and say so; `to_dict` and the page have everything.
    """
    told = _table([COLUMNS, *(cells(member) for member in result.members[:_MOST_ROWS])])
    if (more := len(result.members) - _MOST_ROWS) > 0:
        told.append(f"... and {more} more volumes (--json or -o PAGE.html has all)")
    told += [f"{kind.severity} [{kind.code}] {kind}" for kind in kinds(result.findings)]
    if result.left_out:
        names = ", ".join(path.name for path in result.left_out[:5]) + (", ..." if len(result.left_out) > 5 else "")
        told.append(f"left out, no volumes: {len(result.left_out)} ({names})")
    told += [f"{fix.target}: {'; '.join(fix.done)}" for fix in result.fixes]
    numbers = ", ".join(f"{len(result.of_severity(severity))} {severity}s" for severity in SEVERITIES)
    return [*told, f"{len(result.members)} volumes: {numbers}"]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _check(
    domains: Mapping[str, Path],
    paths: Sequence[Path],
    modalities: tuple[str, str],
    headers_only: bool,
    output: Path | None,
    fix: Path | None,
    gathered: Mapping[str, Listing],
) -> None:
    if not domains and not paths and not gathered:
        raise InputError("inspect needs volumes.", "Give --a DIR, --b DIR, --data ROOT, or files and folders.")
    if set(modalities) - set(MODALITIES):
        raise InputError(f"the modalities are {' '.join(modalities)}; each is MR or CT.")
    if output is not None and (output.is_dir() or output.suffix.lower() not in (".html", ".htm")):
        raise InputError(f"the output {output} is no HTML file.", "Give a name that ends with .html.")
    if fix is None:
        return
    if headers_only:
        raise InputError("--fix needs the voxels, and --headers does not read them.", "Leave one of them out.")
    if fix.exists() and (not fix.is_dir() or any(fix.iterdir())):
        raise InputError(f"{fix} exists and is no empty folder.", "Give a new folder: nothing is overwritten.")
    files = (file.parent for found in gathered.values() for file in found.volumes)
    for source in (*domains.values(), *paths, *files):
        if source.resolve() in (fix.resolve(), *fix.resolve().parents):
            raise InputError(f"{fix} lies in {source}, whose volumes are inspected.", "Give a folder elsewhere.")


def _attempt(file: Path, job: Callable[[Path], Survey]) -> Survey:
    try:
        return job(file)
    except MemoryError:
        raise
    # A damaged file can make a library raise anything at all; it must cost this file only, and be seen.
    except Exception as error:
        return Survey(file, problem=f"{file}: {type(error).__name__}: {error}".splitlines()[0])


def _survey(file: Path, measured: Survey | InputError) -> Survey:
    return Survey(file, problem=f"{file}: {measured}") if isinstance(measured, InputError) else measured


def _fix(members: Sequence[Volume], folder: Path, progress: Progress) -> tuple[Fix, ...]:
    jobs = []
    for member in members:
        told = of_volume(member)
        # A copy of what is beyond mending would look as if it were sound.
        hopeless = any(s.severity == ERROR and not s.fixable for s in told)
        if any(s.fixable for s in told) and not hopeless:
            jobs.append(member)
    fixes: list[Fix] = []
    for member in progress.track(jobs, len(jobs), "writing mended copies"):
        target = folder / member.domain / target_name(member.survey.file, member.case)
        if target.exists():
            raise InputError(f"two mended volumes would both be {target}.", "Inspect them in separate calls.")
        modality = member.modality or ("CT" if member.survey.kind == "hu" else "MR")
        done = mend(member.survey, modality, target)
        again = of_volume(Volume(member.domain, member.case, modality, measure(target)))
        if left := [s for s in again if s.fixable or s.severity == ERROR]:
            target.unlink()
            raise RuntimeError(f"the mended copy of {member.survey.file} is not sound: {left[0]}")
        fixes.append(Fix(member.survey.file, target, tuple(done)))
    return tuple(fixes)


def _write_page(result: Inspection, output: Path, modalities: Mapping[str, str], folders: Mapping[str, Path]) -> None:
    by_file: dict[tuple[str, str], list[Finding]] = {}
    for finding in result.findings:
        by_file.setdefault((finding.domain, finding.file), []).append(finding)

    def rank(member: Volume) -> int:
        own = by_file.get((member.domain, str(member.survey.file)), [])
        return min((SEVERITIES.index(s.severity) for s in own), default=len(SEVERITIES))

    shown = {id(m) for m in sorted(result.members, key=rank)[:_MOST_THUMBNAILS]}
    volumes = [
        VolumeEntry(
            domain=member.domain,
            cells=cells(member),
            worst=next(iter([s.severity for s in by_file.get((member.domain, str(member.survey.file)), [])]), ""),
            remarks=tuple(s.message for s in by_file.get((member.domain, str(member.survey.file)), [])),
            thumbnail=member.survey.thumbnail if id(member) in shown else b"",
        )
        for member in result.members
    ]
    facts = {f"domain {d}": f"{folder} ({modalities[d]})" for d, folder in folders.items()}
    facts["volumes"] = str(len(result.members))
    facts |= {f"{severity}s": str(len(result.of_severity(severity))) for severity in SEVERITIES}
    if result.left_out:
        facts["no volumes, left out"] = (
            f"{len(result.left_out)} ({', '.join(p.name for p in result.left_out[:5])}, ...)"
        )
    if result.fixes:
        facts["mended copies"] = ", ".join(str(fix.target) for fix in result.fixes)
    if result.headers_only:
        facts["voxels"] = "not read: headers only"
    rows = [Row(k.severity, k.subject, k.message, k.remedy, k.each) for k in kinds(result.findings)]
    pictures = sum(bool(v.thumbnail) for v in volumes)
    note = (
        f"{pictures} of {len(volumes)} volumes are shown, those with errors first." if len(shown) < len(volumes) else ""
    )
    write_inspection_page(
        output, facts, rows, COLUMNS, volumes, {c: (r.severity, r.criterion) for c, r in RULES.items()}, note
    )
