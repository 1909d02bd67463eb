"""Options that verbs share, and how a verb takes them: a parameter that is a dataclass becomes an option per field."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from medcyclegan.errors import DEBUG, InputError

if TYPE_CHECKING:
    from medcyclegan.config import Experiment

Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Workers = Annotated[int, typer.Option(help="Processes; 0: one per core.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the experiment, e.g. seed=1.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="MODULE", help="Import parts that a config or checkpoint names from this module."),
]
Paths = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="EXPERIMENT.yaml|DATA",
        help="A .yaml file is the experiment, anything else the data: a prepared folder, a datalist, a CSV, or a "
        "folder in a known layout. It is detected by itself.",
    ),
]
MaskFolder = Annotated[Path | None, typer.Option(help="Folder of body masks with the same case ids.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show whole tracebacks of errors.")]


@dataclass(frozen=True)
class Given:
    """An experiment and its data, as every verb takes them."""

    paths: Paths = None
    a: Annotated[Path | None, typer.Option(help="Folder of volumes of the source domain, MR, instead of DATA.")] = None
    b: Annotated[Path | None, typer.Option(help="Folder of volumes of the target domain, CT, instead of DATA.")] = None
    fold: Annotated[int | None, typer.Option(help="Validation fold of DATA, a datalist.")] = None
    layout: Annotated[
        str | None,
        typer.Option(help="Of DATA: folders, cyclegan, decathlon, synthrad, bids, dicom or csv; default: detected."),
    ] = None
    contrast_a: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]...",
            help="Which scans of DATA are a, e.g. T1w or '*t1*'; T1w,T2w become channels in this order.",
        ),
    ] = None
    contrast_b: Annotated[str | None, typer.Option(metavar="NAME[,NAME]...", help="Which scans of DATA are b.")] = None
    patient: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Searched in paths in DATA; its first group is the patient.")
    ] = None
    overrides: Overrides = None
    allow: Allow = None

    @property
    def file(self) -> Path | None:
        """The YAML file of the experiment."""
        return split_paths(self.paths)[0]

    @property
    def sources(self) -> list[Path]:
        """The paths that are data."""
        return split_paths(self.paths)[1]

    @property
    def selects(self) -> bool:
        """Whether an option says how DATA, a layout, is to be read."""
        return any(given is not None for given in (self.layout, self.contrast_a, self.contrast_b, self.patient))

    def data(self) -> dict[str, Any]:
        """The options that name data, by the keys of `config.Data`; None where not given."""
        if len(self.sources) > 1:
            raise InputError(
                f"DATA is one path, got {', '.join(map(str, self.sources))}.",
                "Give two folders of volumes as --a DIR --b DIR.",
            )
        keys = ("a", "b", "fold", "layout", "contrast_a", "contrast_b", "patient")
        return {"source": next(iter(self.sources), None), **{key: getattr(self, key) for key in keys}}

    def experiment(self, **more: Path | None) -> Experiment:
        """The experiment, on the data that are given, and `more` of them."""
        from medcyclegan import config

        return config.load(self.file, self.overrides or (), allow=self.allow or (), data={**self.data(), **more})


def split_paths(paths: list[Path] | None) -> tuple[Path | None, list[Path]]:
    """Split the paths given to a verb into the experiment (a .yaml or .yml file), if any, and the data."""
    files = [path for path in paths or () if path.suffix.lower() in (".yaml", ".yml")]
    if len(files) > 1:
        raise InputError(f"an experiment is one YAML file, got {', '.join(map(str, files))}.")
    return next(iter(files), None), [path for path in paths or () if path not in files]


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a typer command of a verb: one option per field of its dataclass parameters, and --debug."""
    hints = get_type_hints(verb, include_extras=True)
    spread: dict[str, type[Any]] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}  # type: ignore[misc]
    taken = []
    for parameter in inspect.signature(verb).parameters.values():
        if kind := spread.get(parameter.name):
            inner = get_type_hints(kind, include_extras=True)
            taken += [_option(field.name, inner[field.name], field.default) for field in fields(kind)]
        else:
            taken.append(_option(parameter.name, hints[parameter.name], parameter.default))

    def command(debug: bool = False, **values: Any) -> None:
        if debug:
            os.environ[DEBUG] = "1"
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in spread.items()
        }
        verb(**values, **made)

    command.__signature__ = inspect.Signature([*taken, _option("debug", Debug, False)])  # type: ignore[attr-defined]
    command.__doc__ = verb.__doc__
    return command


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
