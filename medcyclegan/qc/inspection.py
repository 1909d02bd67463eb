"""Inspect every volume of a cohort before it is used: surveys, findings, a page, and repaired copies.

Files are measured in parallel processes, each of which holds one volume at a time; only surveys come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medcyclegan.cohort.cases import Cohort, contrast_names
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.listing import Listing, look_below, look_in
from medcyclegan.io.reader import case_id
from medcyclegan.machine import cores
from medcyclegan.process_pool import ProcessPool
from medcyclegan.progress import Progress, Silent
from medcyclegan.qc import ERROR, SEVERITIES, Finding, Volume, all_findings, kinds, volume_findings
from medcyclegan.qc.fixes import repair, target_name
from medcyclegan.qc.page import COLUMNS, cells, write_page
from medcyclegan.survey.volume import PERCENTILES, Survey, measure_file, measure_header

MODALITIES = ("MR", "CT")
_MOST_ROWS = 100  # of the table in a terminal
_FEW = 4


@dataclass(frozen=True)
class Fix:
    """A repaired copy."""

    source: Path
    target: Path
    done: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        volumes: every volume that was looked at, domain by domain in order of path.
        findings: errors first, then warnings, then notes.
        left_out: files and folders that are no volumes.
        fixes: copies that were written.
        headers_only: whether voxels were not read.
    """

    volumes: tuple[Volume, ...]
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
        """Plain data for JSON. Of the patient it holds nothing but the file names."""
        return {
            "volumes": [{"domain": m.domain, "case": m.case, **_shown(m.survey)} for m in self.volumes],
            "findings": [{"severity": s.severity, **asdict(s), "fixable": s.fixable} for s in self.findings],
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
    """Inspect every volume of the domains and under the paths.

    Args:
        domains: "a" and "b", one of them or none, -> folder of volumes.
        paths: other volumes and folders, of no domain and unknown modality; sub-folders are searched.
        modalities: of a and b, "MR" or "CT".
        headers_only: do not read voxels; thousands of files per minute, and only what headers tell.
        output: an HTML page to write.
        fix: a new or empty folder for repaired copies, `a/`, `b/` and files of no domain in it; see `qc.fixes`. Nothing
            is changed in place, and only repaired volumes are written.
        workers: processes; 0: one per core. With more than one, a script needs the usual
            `if __name__ == "__main__":`.
        progress: watches the files.
        cohort: what to look at instead of folders of the domains. Each contrast is compared with itself only: the first
            is the domain "a" or "b", another one is shown as "a T2w".

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
    job = measure_header if headers_only else partial(measure_file, thumbnail=output is not None)
    # Starting a process takes as long as reading a few volumes.
    with ProcessPool((workers or cores()) if len(places) > _FEW else 1, progress) as pool:
        tasks = {index: (file, job) for index, (_, file) in enumerate(places)}
        measured = dict(pool.each(_attempt, tasks, "inspecting volumes"))
    volumes = [
        Volume(domain, case_id(file), of_domain.get(domain), _survey(file, measured[index]))
        for index, (domain, file) in enumerate(places)
    ]
    volumes += [
        Volume(domain, case_id(file), of_domain.get(domain), Survey(file, problem=f"{file}: {why}. Mend or remove it."))
        for domain, file, why in unusable
    ]
    findings = all_findings(volumes, of_domain)
    fixes = _fix(volumes, fix, progress) if fix is not None else ()
    left_out = tuple(path for found in gathered.values() for path in found.left_out)
    result = Inspection(tuple(volumes), tuple(findings), left_out, tuple(fixes), headers_only)
    if output is not None:
        counts = {d: f"{len(found.volumes)} volumes" for d, found in gathered.items() if d}
        where: Mapping[str, object] = domains or counts
        facts = {f"domain {d}": f"{folder} ({of_domain[d]})" for d, folder in where.items()}
        write_page(output, result.volumes, result.findings, facts | _facts(result))
    return result


def _facts(result: Inspection) -> dict[str, str]:
    """Name to value, for the head of the page."""
    facts = {"volumes": str(len(result.volumes))}
    facts |= {f"{severity}s": str(len(result.of_severity(severity))) for severity in SEVERITIES}
    if result.left_out:
        facts["no volumes, left out"] = _left_out(result)
    if result.fixes:
        facts["mended copies"] = ", ".join(str(fix.target) for fix in result.fixes)
    if result.headers_only:
        facts["voxels"] = "not read: headers only"
    return facts


def _left_out(result: Inspection) -> str:
    names = ", ".join(path.name for path in result.left_out[:5]) + ", ..." * (len(result.left_out) > 5)
    return f"{len(result.left_out)} ({names})"


def _shown(survey: Survey) -> dict[str, Any]:
    """A survey as readable plain data: rounded, with units, without pictures."""
    body, percentiles = survey.anatomy, survey.percentiles
    head = body.head if body else None
    plain = {
        "file": str(survey.file),
        "problem": survey.problem,
        "shape": survey.grid.shape if survey.grid else None,
        "spacing_mm": survey.spacing,
        **{name: getattr(survey, name) for name in ("axes", "tilt_degrees", "stored", "header_modality")},
        **{name: getattr(survey, name) for name in ("contrast_agent", "not_finite", "minimum", "maximum")},
        "percentiles": dict(zip(map(str, PERCENTILES), percentiles, strict=True)) if percentiles else None,
        **{name: getattr(survey, name) for name in ("kind", "metal_ml", "digest")},
        "body": {
            **{name: getattr(body, name) for name in ("extent_mm", "liters", "contact_cm2")},
            "air_hu": body.air,
            "table": body.table,
        }
        if body
        else None,
        "head": vars(head) if head else None,
    }
    return {key: _rounded(value) for key, value in plain.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _of_cohort(cohort: Cohort) -> dict[str, Listing]:
    """The volumes of a cohort, pairs included, by domain and contrast."""
    found: dict[str, Listing] = {}
    for domain in ("a", "b"):
        cases = [case.images for group in (domain, f"pairs_{domain}") for case in cohort.groups[group]]
        names = cohort.contrasts.get(domain) or contrast_names(len(cases[0]))
        for number, name in enumerate(names):
            found[f"{domain} {name}" if number else domain] = Listing([images[number] for images in cases])
    return found


def lines(result: Inspection) -> list[str]:
    """The result for a terminal: the volumes, then the findings, worst first and each kind once, then the counts.

    Long lists are cut, and say so; `to_dict` and the page have everything.
    """
    shown = _table([COLUMNS, *(cells(volume) for volume in result.volumes[:_MOST_ROWS])])
    if (more := len(result.volumes) - _MOST_ROWS) > 0:
        shown.append(f"... and {more} more volumes (--json or -o PAGE.html has all)")
    shown += [f"{kind.severity} [{kind.code}] {kind}" for kind in kinds(result.findings)]
    if result.left_out:
        shown.append(f"left out, no volumes: {_left_out(result)}")
    shown += [f"{fix.target}: {'; '.join(fix.done)}" for fix in result.fixes]
    numbers = ", ".join(f"{len(result.of_severity(severity))} {severity}s" for severity in SEVERITIES)
    return [*shown, f"{len(result.volumes)} volumes: {numbers}"]


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
        raise InputError("inspect needs volumes.", "Give --a DIR, --b DIR, or DATA: a cohort, or files and folders.")
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
    # A damaged file can make a library raise anything; it must fail this file only, and be reported.
    except Exception as error:
        return Survey(file, problem=f"{file}: {type(error).__name__}: {error}".splitlines()[0])


def _survey(file: Path, measured: Survey | InputError) -> Survey:
    return Survey(file, problem=f"{file}: {measured}") if isinstance(measured, InputError) else measured


def _fix(volumes: Sequence[Volume], folder: Path, progress: Progress) -> tuple[Fix, ...]:
    jobs = []
    for volume in volumes:
        findings = volume_findings(volume)
        # A copy of a volume with other errors would look as if it were sound.
        hopeless = any(s.severity == ERROR and not s.fixable for s in findings)
        if any(s.fixable for s in findings) and not hopeless:
            jobs.append(volume)
    fixes: list[Fix] = []
    for volume in progress.track(jobs, len(jobs), "writing mended copies"):
        target = folder / volume.domain / target_name(volume.survey.file, volume.case)
        if target.exists():
            raise InputError(f"two mended volumes would both be {target}.", "Inspect them in separate calls.")
        modality = volume.modality or ("CT" if volume.survey.kind == "hu" else "MR")
        done = repair(volume.survey, modality, target)
        again = volume_findings(Volume(volume.domain, volume.case, modality, measure_file(target)))
        if left := [s for s in again if s.fixable or s.severity == ERROR]:
            target.unlink()
            raise RuntimeError(f"the mended copy of {volume.survey.file} is not sound: {left[0]}")
        fixes.append(Fix(volume.survey.file, target, tuple(done)))
    return tuple(fixes)
