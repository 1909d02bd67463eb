"""Verbs that judge: evaluate, report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medcyclegan.cli.options import AsJson, Output, Workers
from medcyclegan.cli.printing import end_with_failures, note, print_json, say, warn
from medcyclegan.errors import InputError


def evaluate(
    output: Output,
    pred: Annotated[Path | None, typer.Argument(metavar="PRED", help="Synthetic volumes: a folder or a file.")] = None,
    ref: Annotated[Path | None, typer.Argument(metavar="REF", help="Reference volumes: a folder or a file.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Masks to score in; by default the reference's body.")] = None,
    protocol: Annotated[str, typer.Option(help="synthrad2023, synthrad2025 or native.")] = "native",
    pairs: Annotated[Path | None, typer.Option(help="CSV: case, pred, ref and optionally mask, ...")] = None,
    pattern: Annotated[
        list[str] | None, typer.Option(metavar="[ROLE=]PATH", help="How files are named: pred={case}/sct.mha.")
    ] = None,
    source: Annotated[Path | None, typer.Option(help="MR volumes, for a report only.")] = None,
    pred_labels: Annotated[Path | None, typer.Option(help="Label maps of PRED, TotalSegmentator's numbers.")] = None,
    ref_labels: Annotated[Path | None, typer.Option(help="Label maps of REF.")] = None,
    segment: Annotated[bool, typer.Option("--segment", help="Make the label maps with TotalSegmentator.")] = False,
    targets: Annotated[Path | None, typer.Option(help="Masks for range errors; by default the body's center.")] = None,
    angles: Annotated[str | None, typer.Option(help="Gantry angles, 0,90,180; by default every 10 degrees.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="JSON: HU to stopping power and electron density.")] = None,
    range_maps: Annotated[bool, typer.Option("--range-maps", help="Write maps of the range errors.")] = False,
    tissues: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="HU thresholds: air is below LOW, bone above HIGH."),
    ] = None,
    bone: Annotated[str | None, typer.Option(help="HU thresholds for comparing bone surfaces: 200,500.")] = None,
    resample: Annotated[bool, typer.Option("--resample", help="Bring PRED onto the grid of REF.")] = False,
    register: Annotated[bool, typer.Option("--register", help="Move PRED rigidly onto REF first.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score the cases that are there; list the rest.")
    ] = False,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Compare the two sets as a whole, without pairs; says much less.")
    ] = False,
    device: Annotated[str, typer.Option("--device", "-d", help="For SSIM and MS-SSIM: cpu, cuda or cuda:N.")] = "cpu",
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Score synthetic volumes against references, paired by case id, in Hounsfield units."""
    from medcyclegan.evaluation.evaluate import evaluate_pairs
    from medcyclegan.evaluation.metrics.tissue import Tissues
    from medcyclegan.evaluation.pairing import find_cases
    from medcyclegan.evaluation.range_error import load_calibration
    from medcyclegan.evaluation.scoring import Scoring
    from medcyclegan.progress import Terminal

    if unpaired:
        of_pairs = {
            "--mask": mask,
            "--protocol": protocol != "native",
            "--pairs": pairs,
            "--pattern": pattern,
            "--source": source,
            "--pred-labels": pred_labels,
            "--ref-labels": ref_labels,
            "--segment": segment,
            "--targets": targets,
            "--angles": angles,
            "--calibration": calibration,
            "--range-maps": range_maps,
            "--tissues": tissues,
            "--bone": bone,
            "--resample": resample,
            "--register": register,
            "--allow-missing": allow_missing,
        }
        if misplaced := [option for option, value in of_pairs.items() if value]:
            raise InputError(
                f"--unpaired compares two sets, and {', '.join(misplaced)} belong to pairs; leave them out."
            )
        _evaluate_unpaired(pred, ref, output, as_json)
        return
    given = {
        "pred": pred,
        "ref": ref,
        "mask": mask,
        "source": source,
        "pred_labels": pred_labels,
        "ref_labels": ref_labels,
        "target": targets,
    }
    chosen: dict[str, Any] = {
        "tissues": Tissues(*tissues) if tissues else None,
        "bone": _numbers(bone, "--bone", "200,500"),
        "angles": _numbers(angles, "--angles", "0,90,180"),
        "calibration": load_calibration(calibration) if calibration else None,
    }
    scoring = Scoring(
        protocol,
        range_maps=range_maps,
        segment=segment,
        resample=resample,
        register=register,
        device=device,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    pairing = find_cases(given, pattern or (), table=pairs, allow_missing=allow_missing)
    result = evaluate_pairs(pairing, output, scoring, workers=workers, progress=Terminal())
    for case, doubts in result.summary["doubts"].items():
        for doubt in doubts:
            warn(f"{case}: {doubt}")
    if as_json:
        print_json(result.summary)
    else:
        for name, values in result.summary["metrics"].items():
            if values["mean"] is not None:
                spread = "" if values["sd"] is None else f"sd {values['sd']:.2g}, "
                if values["ci_low"] is not None:
                    spread += f"95 % interval {values['ci_low']:.4g} to {values['ci_high']:.4g}, "
                say(f"{name}: {values['mean']:.4g} ({spread}n {values['n']})")
        if result.missing:
            expected = result.summary["n_expected"]
            say(f"graded {len(result.cases)} of {expected}; without a prediction: {', '.join(result.missing)}")
        if unmatched := result.summary["unmatched"]:
            say(f"not graded, without a reference: {', '.join(unmatched)}")
        say(f"{output / 'cases.csv'}")
    end_with_failures(dict(result.failed))


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of an evaluation or of a training.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    source: Annotated[Path | None, typer.Option(help="Folder of the MR volumes, to be shown.")] = None,
    uncertainty: Annotated[Path | None, typer.Option(help="Folder of uncertainty maps, to be shown.")] = None,
    window: Annotated[tuple[float, float], typer.Option(metavar="LOW HIGH", help="HU shown black and white.")] = (
        -400.0,
        1200.0,
    ),
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about an evaluation or a training: tables, plots, and slices to scroll through."""
    from medcyclegan.progress import Terminal
    from medcyclegan.report.report import write_report

    written = write_report(results, output, source=source, uncertainty=uncertainty, window=window, progress=Terminal())
    for case, reason in written.not_shown.items():
        warn(f"no pictures of {case}: {reason}")
    if as_json:
        print_json({"report": str(written.path), "bytes": written.size, "not_shown": dict(written.not_shown)})
    else:
        say(f"{written.path} ({written.size / 1e6:.1f} MB)")


def _evaluate_unpaired(pred: Path | None, ref: Path | None, output: Path, as_json: bool) -> None:
    from medcyclegan.evaluation.distribution import compare_distributions
    from medcyclegan.progress import Terminal

    if pred is None or ref is None:
        raise InputError("--unpaired compares two folders: give both.")
    found = compare_distributions(pred, ref, output, progress=Terminal())
    if as_json:
        print_json(found)
        return
    for name, value in found["distances"].items():
        say(f"{name}: {value:.4g}")
    note(found["warning"])
    say(f"{output / 'distribution.json'}")


def compare(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Folders that evaluate wrote.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the tables.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Which scores; by default mae, psnr, ssim, ms_ssim.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Compare the cases that all evaluations have.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare evaluations of the same patients: paired differences, tests, and a ranking with its stability."""
    from medcyclegan.evaluation.compare import compare as run_comparison

    found = run_comparison(results, output, metrics=metric, allow_missing=allow_missing)
    if as_json:
        print_json(found.summary)
        return
    for line in found.lines():
        say(line)


def _numbers(text: str | None, option: str, example: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: numbers with commas between them are needed, such as {example}.") from None
