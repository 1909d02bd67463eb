"""The command `export`: one run, one format, one or both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medcyclegan import __version__
from medcyclegan.atomic import atomic_folder, write_json
from medcyclegan.errors import InputError
from medcyclegan.export.bundle import preparation, write_bundle
from medcyclegan.export.card import write_card
from medcyclegan.export.model import Model, read_model
from medcyclegan.export.onnx import OPSET, require_onnx, save_onnx
from medcyclegan.export.program import Program, export_program, save_program
from medcyclegan.export.slicer import write_slicer

DIRECTIONS = ("ab", "ba", "both")


def export_run(
    run: Path,
    output: Path,
    *,
    file_format: str = "bundle",
    direction: str = "ab",
    scores: Path | None = None,
    allow: Iterable[str] = (),
) -> dict[str, Any]:
    """Export a run or checkpoint into a new folder.

    Args:
        run: a run, or a checkpoint file of one.
        output: the folder; for both directions one folder each is made in it, `ab` and `ba`.
        file_format: "bundle" (MONAI), "onnx", "pt2" (torch.export) or "slicer" (3D Slicer's ModalityConverter).
        direction: "ab", "ba" or "both".
        scores: folder that `medcyclegan evaluate` wrote, for the model card.
        allow: as in `load_translator`.

    Returns:
        Direction -> {"folder", "finished", "program"}: what was written and what it takes, plain data.

    Raises:
        InputError: what is asked for does not exist or cannot be made.
    """
    if file_format == "torchscript":
        raise InputError(
            "TorchScript is deprecated by torch and not written any more.",
            "Take --format pt2, torch.export's successor of it, or onnx.",
        )
    if file_format not in FORMATS:
        raise InputError(f"there is no format '{file_format}'; allowed are {', '.join(FORMATS)}.")
    if direction not in DIRECTIONS:
        raise InputError(f"direction is ab, ba or both, got '{direction}'.")
    if scores is not None and direction == "both":
        raise InputError("scores are of one direction, and both are exported.", "Export the directions one by one.")
    if file_format in ("onnx", "slicer"):
        require_onnx()
    if output.exists():
        raise InputError(f"{output} exists already.", "Give a new folder; nothing is replaced.")
    both = direction == "both"
    models = [read_model(run, one, scores=scores, allow=allow) for one in (("ab", "ba") if both else (direction,))]
    written: dict[str, Any] = {}
    with atomic_folder(output) as made:
        for model in models:
            part = model.direction if both else ""
            (made / part).mkdir(exist_ok=True)
            described = _WRITERS[file_format](model, made / part)
            written[model.direction] = {"folder": str(output / part), "finished": model.finished, **described}
    return written


def write_onnx(model: Model, folder: Path) -> dict[str, Any]:
    """Write `model.onnx` with its description into an empty folder."""
    program = _program(model)
    difference = save_onnx(program, model.generator, folder / "model.onnx", properties(model))
    return _describe(model, program, folder, "onnx", {"opset": OPSET, "difference": difference})


def write_program(model: Model, folder: Path) -> dict[str, Any]:
    """Write `model.pt2`, a program of torch.export, with its description into an empty folder."""
    program = _program(model)
    save_program(program, folder / "model.pt2")
    return _describe(model, program, folder, "pt2", {})


_WRITERS: dict[str, Callable[[Model, Path], dict[str, Any]]] = {
    "bundle": write_bundle,
    "onnx": write_onnx,
    "pt2": write_program,
    "slicer": lambda model, folder: write_slicer(model, _program(model), folder),
}
FORMATS = tuple(_WRITERS)


def _program(model: Model) -> Program:
    return export_program(model.generator, channels=model.channels, window=model.translator.window.roi_size)


def _describe(model: Model, program: Program, folder: Path, form: str, checked: dict[str, Any]) -> dict[str, Any]:
    described = {"takes": program.shape_rule(), **checked}
    write_json(folder / "model.json", sidecar(model, program, checked))
    write_card(folder, "README.md", model, form=form, program=program, more=described)
    return described


def properties(model: Model) -> dict[str, str]:
    """Metadata of the ONNX file."""
    return {
        "producer": f"medcyclegan {__version__}",
        "model": model.name,
        "direction": f"{model.source} to {model.target}",
        "step": f"{model.step} of {model.steps}",
        "intended_use": "research, not for clinical use",
    }


def sidecar(model: Model, program: Program, checked: dict[str, Any]) -> dict[str, Any]:
    """`model.json`: everything needed to use the network alone."""
    content = preparation(model, program.shape_rule())
    content["network"] |= checked | {
        "input": {"name": "image", "dtype": "float32", "range": [-1, 1]},
        "output": {"name": "pred", "dtype": "float32", "range": [-1, 1]},
        "batch": "any",
        "size": list(program.size) if program.size is not None else None,
        "smallest": program.smallest if program.size is None else None,
    }
    return {
        "format": "medcyclegan-network",
        "version": 1,
        **properties(model),
        "finished": model.finished,
        "imported": model.imported,
        "scores": model.scores,
        "scores_of": model.scored,
        **content,
    }
