"""A model for the extension SlicerModalityConverter of 3D Slicer.

The extension (https://github.com/ciroraggio/SlicerModalityConverter) reads three things of a model: an entry in
`Resources/Models/metadata.json` with the keys url, display_name, description and module_name; a file in that folder
whose name starts with the entry's key; and a module in `ModalityConverterLib/ModelsImpl` whose class, registered under
that key, loads the file and translates a volume node. All three are written here, in those folders.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from medcyclegan.errors import InputError
from medcyclegan.export.bundle import preparation
from medcyclegan.export.card import write_card
from medcyclegan.export.model import Model
from medcyclegan.export.onnx import OPSET, save_onnx
from medcyclegan.export.program import Program
from medcyclegan.inference.planes import ACROSS
from medcyclegan.inference.sliding_window import MARGIN

ROOT = Path("ModalityConverter")
MODELS = ROOT / "Resources" / "Models"
CLASSES = ROOT / "ModalityConverterLib" / "ModelsImpl"


def write_slicer(model: Model, program: Program, folder: Path) -> dict[str, Any]:
    """Write into an empty folder what goes over an installed extension.

    Raises:
        InputError: for 3D patches and for networks of one size, which the class does not tile, or without ONNX.
    """
    translator = model.translator
    if translator.window.spatial_dims == 3 or program.size is not None:
        what = "3D patches" if translator.window.spatial_dims == 3 else f"images of {program.shape_rule()}"
        raise InputError(
            f"{model.name} works on {what}, which the class for 3D Slicer does not cut volumes into.",
            "Export it as a bundle or as ONNX.",
        )
    key = "medcyclegan_" + re.sub(r"[^a-z0-9]+", "_", model.name.lower()).strip("_")
    class_name = "Medcyclegan" + "".join(word.capitalize() for word in key.split("_")[1:]) + "Model"
    prepared = preparation(model, program.shape_rule())
    how = model.preparation
    settings = {
        "modality": how.modality,
        "spacing": list(how.spacing),
        "window_hu": list(how.ct_window),
        "percentiles": list(how.mr_percentiles),
        "inverted": how.mr_inverted,
        "floor": how.mr_floor,
        "across": ACROSS[translator.window.plane],
        "neighbors": translator.window.neighbors,
        "window": list(translator.window.roi_size),
        "margin": MARGIN,
        "smallest": program.smallest,
        "output": translator.scaler.to_dict(),
        "whole_numbers": translator.modality == "CT",
    }
    for path in (MODELS, CLASSES):
        (folder / path).mkdir(parents=True)
    difference = save_onnx(program, model.generator, folder / MODELS / f"{key}.onnx")
    entry = {key: metadata_entry(model, class_name)}
    (folder / MODELS / "metadata.json").write_text(json.dumps(entry, indent=4) + "\n", encoding="utf-8")
    source = (Path(__file__).parent / "slicer_model.txt").read_text(encoding="utf-8")
    for mark, text in (("<KEY>", key), ("<CLASS>", class_name), ("<SETTINGS>", repr(settings))):
        source = source.replace(mark, text)
    (folder / CLASSES / f"{class_name}.py").write_text(source, encoding="utf-8")
    (folder / "model.json").write_text(json.dumps(prepared, indent=2) + "\n", encoding="utf-8")
    write_card(folder, "MODEL_CARD.md", model, form="slicer", program=program)
    (folder / "README.md").write_text(_INSTALL.format(key=key, class_name=class_name), encoding="utf-8")
    return {"takes": program.shape_rule(), "difference": difference, "opset": OPSET, "key": key}


def metadata_entry(model: Model, class_name: str) -> dict[str, str]:
    """The entry that the extension shows in its list of models."""
    translator = model.translator
    source, target = html.escape(model.source), html.escape(model.target)
    state = "" if model.finished else (" <b>Imported weights.</b>" if model.imported else " <b>Half trained.</b>")
    unit = " in Hounsfield units" if translator.modality == "CT" else ""
    spacing = " x ".join(f"{step:g}" for step in model.preparation.spacing)
    return {
        # Nothing is downloaded where the file is there already.
        "url": "",
        "display_name": f"{model.source} to synthetic {model.target} (medcyclegan {model.name})",
        "description": f"For research only, not for clinical use.{state}<br><b>Input</b>: {source}, any orientation "
        f"and voxel size; optionally a mask of the body.<br><b>Preprocess</b>: body mask, intensities, "
        f"{spacing} mm voxels.<br><b>Output</b>: synthetic "
        f"{target}{unit} on the grid of the input.",
        "module_name": class_name,
    }


_INSTALL = """# For 3D Slicer

1. In 3D Slicer, install the extension **SlicerModalityConverter** with the Extensions Manager and restart.
2. Find its folder: in Slicer's Python console, `slicer.modules.modalityconverter.path`. The folder that holds
   `ModalityConverter.py` is the one called `ModalityConverter` here.
3. Copy `ModalityConverter/ModalityConverterLib/ModelsImpl/{class_name}.py` and
   `ModalityConverter/Resources/Models/{key}.onnx` into the same folders there.
4. Add the entry of `ModalityConverter/Resources/Models/metadata.json` to the file of that name there. Do not replace
   the file: it lists the other models too.
5. Restart Slicer. The model is in the list of the module *ModalityConverter*.

Give a mask of the body as mask volume if you have one; without one the body is found by a simple rule. The result is
**not exactly** that of `medcyclegan convert`: the body is found otherwise, and it decides the scaling of the
intensities. Where the two must be the same, convert outside of Slicer.

Some versions of the extension run models in a process of their own, which does not get voxel sizes and orientation. The
model then refuses. Bring the volume to the voxel size that `model.json` names, with axes to the right, front and top
(module *Resample Scalar Volume*), and set `ON_WORKING_GRID = True` in `{class_name}.py`.

Read `MODEL_CARD.md`. For research only.

This was written after the extension's public sources. The class was run outside of Slicer with stand-ins for its nodes
and compared with `medcyclegan convert`; **it has not been run in 3D Slicer itself.**
"""
