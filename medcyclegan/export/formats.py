"""The verb `export`: one run, one format, one or both directions."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medcyclegan import __version__
from medcyclegan.atomic import atomic_folder, write_json
from medcyclegan.errors import InputError
from medcyclegan.export.bundle import newest_picture, preparation, refuse_existing, write_bundle
from medcyclegan.export.card import LICENSE, write_card
from medcyclegan.export.model import Model, read_model
from medcyclegan.export.onnx import OPSET, require_onnx, save_onnx
from medcyclegan.export.program import Program, export_program, save_program
from medcyclegan.export.slicer import write_slicer

FORMATS = ("bundle", "onnx", "pt2", "slicer")
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
    refuse_existing(output)
    wanted = ("ab", "ba") if direction == "both" else (direction,)
    models = [read_model(run, one, scores=scores, allow=allow) for one in wanted]
    written: dict[str, Any] = {}
    with atomic_folder(output) as made:
        for model in models:
            into = made / model.direction if direction == "both" else made / "export"
            described = _export(model, into, file_format)
            final = output / model.direction if direction == "both" else output
            written[model.direction] = {"folder": str(final), "finished": model.finished, **described}
        if direction != "both":
            for entry in (made / "export").iterdir():
                shutil.move(entry, made / entry.name)
            (made / "export").rmdir()
    return written


def _export(model: Model, folder: Path, file_format: str) -> dict[str, Any]:
    if file_format == "bundle":
        without = write_bundle(model, folder)
        return {"without_program": without} if without else {}
    program = export_program(model.generator, channels=model.channels, window=model.translator.window.roi_size)
    if file_format == "slicer":
        return write_slicer(model, program, folder)
    described: dict[str, Any] = {"takes": program.shape_rule()}
    with atomic_folder(folder) as made:
        if file_format == "onnx":
            described["difference"] = save_onnx(program, model.generator, made / "model.onnx", properties(model))
            described["opset"] = OPSET
        else:
            save_program(program, made / "model.pt2")
        write_json(made / "model.json", sidecar(model, program, described))
        picture = newest_picture(model)
        if picture is not None:
            shutil.copyfile(picture, made / "picture.png")
        write_card(
            made / "README.md",
            model,
            form=file_format,
            picture="picture.png" if picture is not None else None,
            program=program,
            more=described,
        )
        (made / "LICENSE").write_text(LICENSE, encoding="utf-8")
    return described


def properties(model: Model) -> dict[str, str]:
    """What the ONNX file says of itself."""
    return {
        "producer": f"medcyclegan {__version__}",
        "model": model.name,
        "direction": f"{model.source} to {model.target}",
        "step": f"{model.step} of {model.steps}",
        "intended_use": "research, not for clinical use",
    }


def sidecar(model: Model, program: Program, described: dict[str, Any]) -> dict[str, Any]:
    """`model.json`: everything that is needed to use the network alone."""
    content = preparation(model, program.shape_rule())
    content["network"] |= {key: described[key] for key in ("opset", "difference") if key in described}
    content["network"] |= {
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
