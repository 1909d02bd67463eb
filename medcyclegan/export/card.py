"""The model card that goes with every export: what the model is, how it was made and measured, and what it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from medcyclegan import __version__
from medcyclegan.atomic import atomic_file
from medcyclegan.export.model import Model
from medcyclegan.export.program import Program

LICENSE = """The configuration files and texts in this folder were written by medcyclegan and are under the Apache
License 2.0, https://www.apache.org/licenses/LICENSE-2.0

The license of the weights has not been stated by whoever trained them. Weights can carry rights in the data that they
were trained on. State their license here before you pass them on.
"""


def write_card(
    path: Path,
    model: Model,
    *,
    form: str,
    picture: str | None = None,
    program: Program | None = None,
    without: str | None = None,
    more: dict[str, Any] | None = None,
) -> None:
    """Fill `card.md` for a model.

    Args:
        path: the Markdown file to write.
        model: what is exported.
        form: "bundle", "onnx", "pt2" or "slicer"; it picks the section on how to use it.
        picture: file beside `path` to show.
        program: the exported program, if there is one.
        without: why there is none.
        more: further values for the section on use.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    translator = model.translator
    text = template.render(
        model=model,
        form=form,
        picture=picture,
        without=without,
        program=program,
        preparation=translator.source.preparations[0],
        translator=translator,
        losses=[leaf["_target_"] for leaf in model.experiment["losses"]["structure"]],
        version=__version__,
        **(more or {}),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
