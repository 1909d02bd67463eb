"""The command line: one short function per verb, which calls the library and prints what it gives.

Standard output carries results, standard error carries progress, warnings and errors. A mistake of the user ends with
one message and exit code 2, cases that failed with exit code 1, an interruption with 130.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from medcyclegan import __version__
from medcyclegan.errors import InputError
from medcyclegan.progress import Notices


class _Verbs(typer.core.TyperGroup):
    """Typer would end an interrupted verb without a word. Warnings come before its errors, one line per kind."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _notices.release()
            _fail("interrupted.", 130)
        finally:
            _notices.release()


app = typer.Typer(
    cls=_Verbs,
    help="Translate medical volumes between modalities without paired data, above all MRI to CT. "
    "A research tool, not for clinical use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the experiment, e.g. seed=1.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="MODULE", help="Import parts that a config or checkpoint names from this module."),
]
Root = Annotated[
    Path | None, typer.Option("--data", metavar="ROOT", help="Folder or CSV in a known layout, instead of --a and --b.")
]
LayoutName = Annotated[
    str | None,
    typer.Option(help="folders, cyclegan, decathlon, synthrad, bids, dicom or csv; by default the one that fits."),
]
Contrast = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME]...",
        help="Which kind of scans of ROOT, e.g. T1w or '*t1*'; T1w,T2w become channels in this order.",
    ),
]
PatientPattern = Annotated[
    str | None,
    typer.Option("--patient", metavar="REGEX", help="Its first group, in a path under ROOT, names the patient."),
]
MaskFolder = Annotated[Path | None, typer.Option(help="Folder of body masks with the same case ids.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"medcyclegan {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Output = Path("medcyclegan-demo"),
    device: Device = "auto",
    seed: int = 0,
    minutes: Annotated[float, typer.Option(help="What it should take; more minutes, more training steps.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Make phantom patients, train on them unpaired, convert, evaluate, and write a report. About 5 minutes."""
    from medcyclegan.demo import run_demo
    from medcyclegan.progress import Terminal

    result = run_demo(output, device=device, seed=seed, minutes=minutes, progress=Terminal(), tell=_note)
    if as_json:
        _print_json(result)
        return
    _say(f"in-mask MAE on the paired test phantoms: {result['mae']:.1f} HU")
    for name, value in result["baselines"].items():
        _say(f"  {name.replace('_', ' ')}: {value:.1f} HU")
    _say(f"report: {result['report']}  ({result['seconds']:.0f} s in all)")


@app.command(name="inspect")
def inspect_volumes(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Volumes, or folders to search.")
    ] = None,
    a: Annotated[Path | None, typer.Option(help="Folder of volumes of the source domain, MR.")] = None,
    b: Annotated[Path | None, typer.Option(help="Folder of volumes of the target domain, CT.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="PAGE.html", help="A page to write.")] = None,
    root: Root = None,
    layout: LayoutName = None,
    contrast_a: Contrast = None,
    contrast_b: Contrast = None,
    datalist: Annotated[Path | None, typer.Option(help="JSON with the lists a, b and optionally pairs.")] = None,
    modalities: Annotated[tuple[str, str], typer.Option(help="Of a and b.")] = ("MR", "CT"),
    fix: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder for copies of what can be mended safely.")
    ] = None,
    headers: Annotated[bool, typer.Option("--headers", help="Read headers only; for thousands of files.")] = False,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Look at every volume of a cohort and say what is suspicious and what to do. Exit code 1 if there are errors."""
    from medcyclegan.progress import Terminal
    from medcyclegan.qc import inspection

    data = {"root": root, "layout": layout, "contrast_a": contrast_a, "contrast_b": contrast_b, "datalist": datalist}
    cohort = None
    if any(given is not None for given in data.values()):
        from medcyclegan import config, factory

        domains = {name: {"name": kind, "modality": kind} for name, kind in zip("ab", modalities, strict=True)}
        cohort = factory.cohort(
            config.with_data(config.parse({"domains": domains}, "the command line"), data), Terminal()
        )
    result = inspection.inspect_cohort(
        {name: folder for name, folder in (("a", a), ("b", b)) if folder is not None},
        paths or (),
        modalities=modalities,
        headers_only=headers,
        output=output,
        fix=fix,
        workers=workers,
        progress=Terminal(),
        cohort=cohort,
    )
    if fix is not None and not result.fixes:
        _note("--fix: nothing can be mended safely; no copy was written")
    if as_json:
        _print_json(result.to_dict() | {"page": None if output is None else str(output)})
    else:
        for line in inspection.lines(result):
            _say(line)
        if output is not None:
            _say(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    if not result.sound:
        raise typer.Exit(1)


@app.command()
def datalist(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder or CSV in a known layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="COHORT.json", help="The datalist to write.")],
    layout: LayoutName = None,
    contrast_a: Contrast = None,
    contrast_b: Contrast = None,
    patient: PatientPattern = None,
    val: Annotated[float, typer.Option(help="Share of the patients that validate.")] = 0.0,
    test: Annotated[float, typer.Option(help="Share of the patients kept for testing.")] = 0.0,
    folds: Annotated[int | None, typer.Option(help="Number of folds for cross-validation, instead of --val.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    modalities: Annotated[tuple[str, str], typer.Option(help="Of the domains a and b.")] = ("MR", "CT"),
    as_json: AsJson = False,
) -> None:
    """Find the volumes of a cohort, split them by patient, and write them down for prepare, train and MONAI."""
    if set(modalities) - {"MR", "CT"}:
        raise InputError(f"--modalities {' '.join(modalities)}: each is MR or CT.")
    from medcyclegan.cohort.assembly import assemble
    from medcyclegan.progress import Terminal

    found = assemble(
        root,
        layout=layout,
        modalities={"a": modalities[0], "b": modalities[1]},
        contrasts={"a": contrast_a, "b": contrast_b},
        patient=patient,
        val=val,
        test=test,
        folds=folds,
        seed=seed,
        progress=Terminal(),
    )
    found.write(output)
    for note in found.notes:
        _warn(note)
    counts = found.counts()
    failed = {str(image): reason for image, reason in found.failed.items()}
    if as_json:
        _print_json(
            {"output": str(output), "about": found.about, "lists": counts, "notes": found.notes, "failed": failed}
        )
    else:
        told = ", ".join(f"{count} in {name}" for name, count in counts.items())
        _say(f"{output}: layout {found.about['layout']} ({found.about['reason']}); {told}")
    _end_with_failures(failed)


@app.command()
def prepare(
    output: Output,
    a: Annotated[Path | None, typer.Option(help="Folder of volumes of the source domain, MR.")] = None,
    b: Annotated[Path | None, typer.Option(help="Folder of volumes of the target domain, CT.")] = None,
    masks_a: MaskFolder = None,
    masks_b: MaskFolder = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV: case, a, b and optionally mask, for validation.")] = None,
    datalist: Annotated[Path | None, typer.Option(help="JSON with the lists a, b and optionally pairs.")] = None,
    fold: Annotated[int | None, typer.Option(help="Which fold of the datalist validates.")] = None,
    root: Root = None,
    layout: LayoutName = None,
    contrast_a: Contrast = None,
    contrast_b: Contrast = None,
    patient: PatientPattern = None,
    gray: Annotated[bool, typer.Option("--gray", help="Turn color 2D images into gray.")] = False,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG.yaml", help="Prepare as this experiment wants it.")
    ] = None,
    overrides: Overrides = None,
    allow: Allow = None,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Bring a cohort of volumes onto a common working grid, once, for training."""
    from medcyclegan import config

    data: dict[str, Any] = {"a": a, "b": b, "masks_a": masks_a, "masks_b": masks_b, "pairs": pairs}
    data |= {"datalist": datalist, "fold": fold}
    data |= {"root": root, "layout": layout, "contrast_a": contrast_a, "contrast_b": contrast_b, "patient": patient}
    data |= {"picture_gray": True} if gray else {}
    experiment = config.with_data(config.load(config_file, overrides or (), allow=allow or ()), data)
    from medcyclegan import factory
    from medcyclegan.progress import Terminal

    prepared = factory.prepare(experiment, output, Terminal(), workers)
    for line in prepared.warnings:
        _warn(line)
    counts = {group: len(cases) for group, cases in prepared.cases.items()}
    left_out: dict[str, float] = {}
    try:
        left_out = factory.left_out(experiment, prepared)
    except InputError as error:
        _warn(f"a training on this would fail: {error}")
    if as_json:
        _print_json(
            {
                "output": str(output),
                "cases": counts,
                "failed": prepared.failed,
                "warnings": prepared.warnings,
                "left_out": left_out,
            }
        )
    else:
        sizes = " x ".join(f"{s:g}" for s in prepared.spacing)
        pairs_done = f", {counts['pairs_a']} validation pairs" if counts["pairs_a"] else ""
        _say(f"{output}: {counts['a']} volumes of a, {counts['b']} of b{pairs_done}, spacing {sizes} mm")
        if left_out:
            _say(_left_out_line(left_out))
    _end_with_failures(prepared.failed)


@app.command()
def plan(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="Its data and domains are planned for.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A YAML file; default: standard output.")
    ] = None,
    a: Annotated[Path | None, typer.Option(help="Folder of volumes of the source domain, MR.")] = None,
    b: Annotated[Path | None, typer.Option(help="Folder of volumes of the target domain, CT.")] = None,
    datalist: Annotated[Path | None, typer.Option(help="JSON with the lists a, b and optionally pairs.")] = None,
    root: Root = None,
    layout: LayoutName = None,
    contrast_a: Contrast = None,
    contrast_b: Contrast = None,
    overrides: Overrides = None,
    allow: Allow = None,
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Plan for a GPU of this much memory, which need not be here.")
    ] = None,
    hours: Annotated[float, typer.Option(help="What a training on a processor may take.")] = 12.0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Look at the volumes and at this machine, and write an experiment with a reason for every choice."""
    from medcyclegan import config

    experiment = config.load(config_file, overrides or (), allow=allow or ())
    folders = {"a": a, "b": b, "datalist": datalist, "root": root}
    experiment = config.with_data(
        experiment, folders | {"layout": layout, "contrast_a": contrast_a, "contrast_b": contrast_b}
    )
    from medcyclegan import plan as planning
    from medcyclegan.progress import Terminal

    machine = planning.this_machine(device) if gpu_memory is None else planning.pretended_gpu(gpu_memory)
    made = planning.make_plan(experiment, machine, hours=hours, progress=Terminal())
    for line in made.warnings:
        _warn(line)
    if output is not None:
        planning.save(made, output)
    if as_json:
        _print_json(planning.to_dict(made))
    elif output is None:
        _say(planning.to_yaml(made).rstrip())
    else:
        _say(f"{output}: train with `medcyclegan train {shlex.quote(str(output))} -o RUN`")
        _say(f"expected time: {planning.expected_time(made)}")


@app.command()
def train(
    config_file: Annotated[Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="The experiment.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A new folder for the run.")] = None,
    a: Annotated[Path | None, typer.Option(help="Folder of MR volumes, instead of data in a config.")] = None,
    b: Annotated[Path | None, typer.Option(help="Folder of CT volumes, instead of data in a config.")] = None,
    root: Root = None,
    layout: LayoutName = None,
    contrast_a: Contrast = None,
    contrast_b: Contrast = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue a run; needs nothing else.")] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Continue with what a config or --set gives now.")
    ] = False,
    device: Device = "auto",
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Train both generators and discriminators into a run folder. Ctrl-C saves and says how to continue."""
    from medcyclegan import config, ranks
    from medcyclegan.progress import Terminal

    first = ranks.env_rank()[0] == 0
    if not first:
        warnings.simplefilter("ignore")  # the first process says it
    if "LOCAL_RANK" in os.environ:
        # Read when torch is imported: it would warn in every process that no network left a weight unused.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    data = {"a": a, "b": b, "root": root, "layout": layout, "contrast_a": contrast_a, "contrast_b": contrast_b}
    if resume is not None:
        if any(given is not None for given in (output, *data.values())):
            raise InputError("--resume continues a run where it is, on its own data; it takes no --output and no data.")
        from medcyclegan import factory

        result = factory.resume(
            resume,
            new=factory.NewSettings(config_file, overrides or (), allow_changes),
            device=device,
            progress=Terminal(),
            handlers=(_notices,),
            allow=allow or (),
        )
    else:
        if allow_changes:
            raise InputError("--allow-changes is for --resume; a new run has nothing to differ from.")
        if output is None:
            raise InputError("train needs --output RUN, a new folder.")
        experiment = config.load(config_file, overrides or (), allow=allow or ())
        experiment = config.with_data(experiment, data)
        from medcyclegan import factory

        with ExitStack() as held:
            if config_file is None and experiment.data.prepared is None:
                if first:
                    held.enter_context(factory.alone_in(output))
                experiment = _planned(experiment, overrides or (), output, device)
            result = factory.train(
                experiment, output, device=device, progress=Terminal(), handlers=(_notices,), workers=0
            )
    if as_json and first:
        _print_json(
            {
                "run": str(result.run),
                "checkpoint": str(result.checkpoint),
                "step": result.step,
                "steps": result.steps,
                "seconds": result.seconds,
                "precision": result.precision,
                "interrupted": result.interrupted,
                "stopped_early": result.stopped_early,
                "best": result.best,
                "left_out": result.left_out,
            }
        )
    if result.interrupted:
        if first:
            _note(f"stopped at step {result.step} of {result.steps}; saved. Continue with:")
            _note(f"  medcyclegan train --resume {result.run}")
        raise typer.Exit(130)
    if first and not as_json:
        early = " (stopped early)" if result.stopped_early else ""
        _say(f"{result.checkpoint}: {result.step} steps{early} in {result.seconds:.0f} s ({result.precision})")
        _say(_left_out_line(result.left_out))
        if result.best is not None:
            chosen = f"{result.best['name']} {result.best['score']:.4g} at step {result.best['step']}"
            _say(f"best validation: {chosen}; convert --checkpoint best takes it")


def _planned(experiment: Any, overrides: list[str] | tuple[str, ...], run: Path, device: str) -> Any:
    """The experiment that a plan for its data gives, with the overrides of the command line; the plan is kept."""
    from medcyclegan import config, factory, ranks
    from medcyclegan import plan as planning
    from medcyclegan.progress import Terminal

    if ranks.env_rank()[1] > 1:
        raise InputError(
            "several processes need a config; without one, each would plan for itself.",
            "Write one first: medcyclegan plan ... -o plan.yaml",
        )
    factory.require_new_run(run)
    made = planning.make_plan(experiment, planning.this_machine(device), progress=Terminal())
    for line in made.warnings:
        _warn(line)
    run.mkdir(parents=True, exist_ok=True)
    planning.save(made, run / factory.PLAN_NAME)
    _note(f"no config was given; planned {run / factory.PLAN_NAME}, which says why")
    _note(f"expected time: {planning.expected_time(made)}")
    return config.load(run / factory.PLAN_NAME, overrides, allow=experiment.allow)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Volumes, DICOM series, or folders of them; of a model of several contrasts one for each, in order.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a file for a single volume.")],
    direction: Annotated[str, typer.Option(help="ab: source to target; ba: back.")] = "ab",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out cases that are finished.")] = False,
    file_format: Annotated[
        str, typer.Option("--format", help="nifti, mha, nrrd, or dicom: a CT series in a folder of its own.")
    ] = "nifti",
    trust: Annotated[bool, typer.Option("--trust", help="Write trust maps too.")] = False,
    masks: MaskFolder = None,
    planes: Annotated[
        str | None, typer.Option(metavar="PLANE,...", help="Fuse slices along these: axial,coronal,sagittal.")
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Fuse with the mirrored volume.")] = False,
    fuse: Annotated[str, typer.Option(help="mean or median.")] = "mean",
    others: Annotated[
        list[Path] | None, typer.Option("--with", metavar="RUN", help="Fuse with a further run or checkpoint.")
    ] = None,
    statistics: Annotated[str, typer.Option(help="Of instance norms: window, neighbors or volume.")] = "window",
    which: Annotated[
        str, typer.Option("--checkpoint", help="Of a run: last, or best, that of the best validation.")
    ] = "last",
    device: Device = "auto",
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Translate volumes and DICOM series; each result lies on its source's own grid, CT in Hounsfield units."""
    from medcyclegan.convert import convert as run_conversion
    from medcyclegan.convert import options as conversion_options
    from medcyclegan.progress import Terminal

    chosen = conversion_options(planes=planes, flips=flips, fuse=fuse, statistics=statistics)
    result = run_conversion(
        checkpoint,
        inputs,
        output,
        direction=direction,
        overwrite=overwrite,
        resume=resume,
        file_format=file_format,
        trust=trust,
        others=others or (),
        device=device,
        progress=Terminal(),
        allow=allow or (),
        which=which,
        masks=masks,
        **chosen,
    )
    _note(f"model: {result.model}")
    for case, record in result.quality.items():
        for flag in record["flags"]:
            _warn(f"{case}: {flag}")
        if record["cohort"] != "known":
            _warn(f"{case}: whether it is like the training volumes is {record['cohort']}")
        if record.get("flagged_slices"):
            _warn(f"{case}: brightness jumps at slices {', '.join(map(str, record['flagged_slices']))}")
    if as_json:
        _print_json(
            {
                "written": {c: str(file) for c, file in result.written.items()},
                "skipped": {c: str(file) for c, file in result.skipped.items()},
                "failed": result.failed,
                "quality": result.quality,
                "model": result.model,
            }
        )
    else:
        for case, file in result.written.items():
            share = result.quality[case].get("share_above_threshold")
            _say(str(file) if share is None else f"{file}: {100 * share:.1f} % of the body is uncertain (--trust)")
        for file in result.skipped.values():
            _say(f"{file} (finished before)")
    _end_with_failures(result.failed)


@app.command()
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
    tissues: Annotated[str | None, typer.Option(help="HU below which is air, above which is bone: -200,200.")] = None,
    bone: Annotated[str | None, typer.Option(help="HU above which bone surfaces are compared: 200,500.")] = None,
    resample: Annotated[bool, typer.Option("--resample", help="Bring PRED onto the grid of REF.")] = False,
    register: Annotated[bool, typer.Option("--register", help="Move PRED rigidly onto REF first.")] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Grade what there is; list the rest.")] = False,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Compare the two sets only, without pairs. Says much less.")
    ] = False,
    device: Annotated[str, typer.Option("--device", "-d", help="For SSIM and MS-SSIM: cpu, cuda or cuda:N.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Grade synthetic volumes against references, paired by case id, in Hounsfield units."""
    from medcyclegan.evaluation.evaluate import evaluate_pairs
    from medcyclegan.evaluation.metrics.tissue import Tissues
    from medcyclegan.evaluation.pairing import find_cases
    from medcyclegan.evaluation.range_error import load_calibration
    from medcyclegan.evaluation.scoring import Scoring
    from medcyclegan.progress import Terminal

    if unpaired:
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
    thresholds = _two_numbers(tissues, "--tissues")
    chosen: dict[str, Any] = {
        "tissues": Tissues(*thresholds) if thresholds else None,
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
            _warn(f"{case}: {doubt}")
    if as_json:
        _print_json(result.summary)
    else:
        for name, values in result.summary["metrics"].items():
            if values["mean"] is not None:
                spread = "" if values["sd"] is None else f"sd {values['sd']:.2g}, "
                if values["ci_low"] is not None:
                    spread += f"95 % interval {values['ci_low']:.4g} to {values['ci_high']:.4g}, "
                _say(f"{name}: {values['mean']:.4g} ({spread}n {values['n']})")
        if result.missing:
            expected = result.summary["n_expected"]
            _say(f"graded {len(result.cases)} of {expected}; without a prediction: {', '.join(result.missing)}")
        if unmatched := result.summary["unmatched"]:
            _say(f"not graded, without a reference: {', '.join(unmatched)}")
        _say(f"{output / 'cases.csv'}")
    _end_with_failures(dict(result.failed))


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of an evaluation or of a training.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    source: Annotated[Path | None, typer.Option(help="Folder of the MR volumes, to be shown.")] = None,
    trust: Annotated[Path | None, typer.Option(help="Folder of trust maps, to be shown.")] = None,
    window: Annotated[tuple[float, float], typer.Option(metavar="LOW HIGH", help="HU shown black and white.")] = (
        -400.0,
        1200.0,
    ),
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about an evaluation or a training: tables, plots, and slices to scroll through."""
    from medcyclegan.progress import Terminal
    from medcyclegan.report.report import write_report

    written = write_report(results, output, source=source, trust=trust, window=window, progress=Terminal())
    for case, reason in written.not_shown.items():
        _warn(f"no pictures of {case}: {reason}")
    if as_json:
        _print_json({"report": str(written.path), "bytes": written.size, "not_shown": dict(written.not_shown)})
    else:
        _say(f"{written.path} ({written.size / 1e6:.1f} MB)")


def _evaluate_unpaired(pred: Path | None, ref: Path | None, output: Path, as_json: bool) -> None:
    from medcyclegan.evaluation.distribution import compare_distributions
    from medcyclegan.progress import Terminal

    if pred is None or ref is None:
        raise InputError("--unpaired compares two folders: give both.")
    found = compare_distributions(pred, ref, output, progress=Terminal())
    if as_json:
        _print_json(found)
        return
    for name, value in found["distances"].items():
        _say(f"{name}: {value:.4g}")
    _note(found["warning"])
    _say(f"{output / 'distribution.json'}")


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Folders that evaluate wrote.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the tables.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Which scores; by default mae, psnr, ssim, ms_ssim.")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Compare the cases that all have.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare evaluations of the same patients: paired differences, tests, and a ranking with its stability."""
    from medcyclegan.evaluation.compare import compare as run_comparison

    found = run_comparison(results, output, metrics=metric, allow_missing=allow_missing)
    if as_json:
        _print_json(found.summary)
        return
    for line in found.lines():
        _say(line)


def _numbers(text: str | None, option: str, example: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: numbers with commas between them are needed, such as {example}.") from None


def _two_numbers(text: str | None, option: str) -> tuple[float, float] | None:
    numbers = _numbers(text, option, "-200,200")
    if numbers is not None and len(numbers) != 2:
        raise InputError(f"{option} {text}: two numbers are needed, such as -200,200.")
    return None if numbers is None else (numbers[0], numbers[1])


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or a checkpoint file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    file_format: Annotated[
        str, typer.Option("--format", help="bundle (MONAI), onnx, pt2 (torch.export) or slicer (3D Slicer).")
    ] = "bundle",
    direction: Annotated[str, typer.Option(help="ab (source to target), ba or both.")] = "ab",
    scores: Annotated[Path | None, typer.Option(help="Folder that evaluate wrote, for the model card.")] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Make a trained run into something that other programs run, with a model card."""
    from medcyclegan.export.formats import export_run

    written = export_run(
        run,
        output,
        file_format=file_format,
        direction=direction,
        scores=scores,
        allow=allow or (),
    )
    for told in written.values():
        if not told["finished"]:
            _warn(f"{told['folder']}: the training is not finished, or unknown; its card says so")
        if "without_program" in told:
            _warn(f"{told['folder']} has no exported program: {told['without_program']}")
    if as_json:
        _print_json(written)
        return
    for told in written.values():
        differs = f", within {told['difference']:.1e} of torch" if "difference" in told else ""
        _say(f"{told['folder']}: {file_format}{differs}")


@app.command()
def import_weights(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A *_net_G*.pth with instance norm.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="CHECKPOINT", help="A new file.")],
    architecture: Annotated[str, typer.Option(help="resnet_9blocks, resnet_6blocks, unet_256 or unet_128.")],
    modalities: Annotated[tuple[str, str], typer.Option(help="What it takes and gives, for example MR CT.")],
    spacing: Annotated[
        tuple[float, float, float],
        typer.Option(help="Pixel size along right and anterior as the network saw it, and slice distance, mm."),
    ],
    orientation: Annotated[
        str,
        typer.Option(
            help="Where rows and columns of the pictures ran; PL is down to posterior, right to the left side."
        ),
    ],
    ct_window: Annotated[
        tuple[float, float] | None, typer.Option(help="HU that were black and white; needed with CT.")
    ] = None,
    mr_percentiles: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Percentiles inside the body that were black and white; needed to translate MR."),
    ] = None,
    mr_inverted: Annotated[bool, typer.Option("--mr-inverted", help="The MR pictures were negatives.")] = False,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Pixels along right and anterior; by default the reference's 256 256."),
    ] = None,
) -> None:
    """Make a checkpoint for convert from a generator of pytorch-CycleGAN-and-pix2pix."""
    from medcyclegan import reference_weights

    model = reference_weights.ReferenceModel(
        architecture=architecture,
        modalities=modalities,
        spacing=spacing,
        orientation=orientation,
        ct_window=ct_window,
        mr_percentiles=mr_percentiles,
        mr_inverted=mr_inverted,
        size=size,
    )
    reference_weights.import_weights(weights, output, model)
    _say(f"{output}: {architecture} from {modalities[0]} to {modalities[1]}")


@app.command()
def benchmark(
    what: Annotated[str, typer.Argument(metavar="train|convert|data", help="What to measure.")],
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG.yaml", help="By default a ResNet-9 of 64 filters.")
    ] = None,
    overrides: Overrides = None,
    size: Annotated[str, typer.Option(help="Voxels of a patch or slice: 128, or 96,96,96.")] = "",
    batch: Annotated[int, typer.Option(help="Patches of each domain per step.")] = 1,
    steps: Annotated[int, typer.Option(help="Of which medians are taken.")] = 10,
    slices: Annotated[int, typer.Option(help="Of the volume that convert translates.")] = 12,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Convert with this model, and not an untrained one,")
    ] = None,
    volume: Annotated[Path | None, typer.Option("--volume", metavar="MR", help="this volume.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a training step goes.")] = False,
    allow: Allow = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure this machine against a plain reference, timed in turn within one run."""
    from medcyclegan import benchmark as bench

    if what not in ("train", "convert", "data"):
        raise InputError(f"benchmark measures train, convert or data, not '{what}'.")
    if run or volume:
        if what != "convert" or not (run and volume) or config_file or overrides or size:
            raise InputError(
                "--run and --volume belong together and to benchmark convert, and they bring config and size along.",
                "Give both of them and neither --config, --set nor --size.",
            )
        _show_benchmark(bench.benchmark_convert_run(run, volume, repeats=steps, device=device), as_json)
        return
    experiment = bench.experiment_for(config_file, overrides or (), allow or ())
    voxels = bench.patch_size(size, experiment, 256 if what == "convert" else 128)
    if what == "train":
        result = bench.benchmark_train(
            experiment, size=voxels, batch=batch, steps=steps, device=device, profile=profile
        )
    elif what == "convert":
        result = bench.benchmark_convert(experiment, size=voxels, slices=slices, repeats=steps, device=device)
    else:
        result = bench.benchmark_data(experiment, size=voxels, batch=batch, steps=steps, device=device)
    _show_benchmark(result, as_json)


def _show_benchmark(result: dict[str, Any], as_json: bool) -> None:
    from medcyclegan.benchmark import described

    if table := result.pop("profile", None):
        _note(table)
    if as_json:
        _print_json(result)
    else:
        for line in described(result):
            _say(line)


@app.command(name="list")
def list_parts(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="generators, discriminators, losses or objectives.")],
    as_json: AsJson = False,
) -> None:
    """Show what a config can name: every part with its paper, its arguments and their defaults."""
    from medcyclegan.registry import listing

    parts = listing(kind)
    if as_json:
        _print_json({kind: parts})
        return
    for part in parts:
        _say(f"{part['name']} ({part['kind']}): {part['summary']}")
        _say(f"    paper: {part['paper']}")
        shown = [a["name"] if a["required"] else f"{a['name']}={a.get('default')!r}" for a in part["arguments"]]
        _say(f"    arguments: {', '.join(shown) or 'none'}")


def main() -> None:
    """Run the command line and turn what went wrong into a message and an exit code."""
    warnings.showwarning = lambda message, *_, **__: _warn(str(message))
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # its errors are raised too, and told below
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted.", 130)
    except ConnectionError as error:
        _fail(f"{error}", 1)
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            _fail(f"no space is left on the disk: {error}. Free some and try again.", 1)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _fail(f"no permission: {error}. Choose a folder that you may write to.", 1)
        _fail(f"a file or folder could not be read or written: {error}.", 1)


def _say(text: str) -> None:
    typer.echo(text)


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _warn(text: str) -> None:
    """Warn, once what is alike has come together."""
    _notices.take(text)


_notices = Notices(lambda text: _note(f"warning: {text}"))


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, allow_nan=False))


def _fail(text: str, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    _note(f"error: {text}" if rank == "0" else f"error in process {rank}: {text}")
    sys.exit(code)


def _left_out_line(shares: dict[str, float]) -> str:
    told = " and ".join(f"{100 * share:.0f} % of {domain}" for domain, share in shares.items())
    return f"slices of body never in the middle of a patch (too little body, no contrast, no partner): {told}"


def _end_with_failures(failed: dict[str, str]) -> None:
    if failed:
        _notices.release()
        _note(f"{len(failed)} failed:")
        for case, reason in failed.items():
            _note(f"  {case}: {reason}")
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
