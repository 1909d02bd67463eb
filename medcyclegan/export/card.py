"""The model card of every export: what the model is, how it was made and evaluated, and its limits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from medcyclegan import __version__
from medcyclegan.export.model import Model
from medcyclegan.export.program import Program

LICENSE = """The configuration files and texts in this folder were written by medcyclegan and are under the Apache
License 2.0, https://www.apache.org/licenses/LICENSE-2.0

The license of the weights has not been stated by whoever trained them. Weights can carry rights in the data that they
were trained on. State their license here before you pass them on.
"""


def write_card(
    folder: Path,
    name: str,
    model: Model,
    *,
    form: str,
    program: Program | None,
    without: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the model card with the newest picture of the run beside it, and the license.

    Args:
        folder: of the export; gets the license.
        name: of the card in the folder, a Markdown file.
        model: what is exported.
        form: "bundle", "onnx", "pt2" or "slicer"; it picks the section on how to use it. One for Slicer has no picture.
        program: the exported program, if there is one.
        without: why there is none.
        more: values for the section on use.
    """
    card = folder / name
    pictures = sorted((model.folder / "pictures").glob("*.png")) if form != "slicer" else []
    if pictures:
        shutil.copyfile(pictures[-1], card.parent / "picture.png")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    text = template.render(
        model=model,
        form=form,
        picture="picture.png" if pictures else None,
        without=without,
        program=program,
        preparation=model.preparation,
        translator=model.translator,
        window=model.translator.window,
        losses=[leaf["_target_"] for leaf in model.experiment["losses"]["structure"]],
        version=__version__,
        **(more or {}),
    )
    card.write_text(text, encoding="utf-8")
    (folder / "LICENSE").write_text(LICENSE, encoding="utf-8")
