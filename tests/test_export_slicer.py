"""The class for 3D Slicer, run with stand-ins for Slicer's nodes, and what the extension reads beside it."""

from __future__ import annotations

import ast
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from medcyclegan import factory, phantom
from medcyclegan.errors import InputError
from medcyclegan.export.formats import export_run
from medcyclegan.export.model import read_model
from medcyclegan.export.program import export_program
from medcyclegan.export.slicer import write_slicer
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import read_mask, read_volume


class Node:
    """A volume node: arrays run (K, J, I), as in Slicer."""

    def __init__(self, array: np.ndarray, affine: np.ndarray) -> None:
        self.array, self.affine = array, affine

    def GetIJKToRASMatrix(self, matrix: Any) -> None:
        matrix.elements = self.affine

    def CopyOrientation(self, other: Node) -> None:
        self.affine = other.affine


class Bare:
    """A node of a version of the extension that hands over the voxels alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class Matrix:
    elements = np.eye(4)

    def GetElement(self, i: int, j: int) -> float:
        return float(self.elements[i, j])


class BaseModel:
    def __init__(self, modelKey: str, device: str = "cpu") -> None:
        self.modelKey, self.device, self.model = modelKey, device, None


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The modules that the class imports; gives what it registers."""
    registered: dict[str, type] = {}

    def register_model(key: str) -> Any:
        return lambda cls: registered.setdefault(key, cls)

    def updated(node: Node, array: np.ndarray) -> None:
        node.array = array

    util = types.SimpleNamespace(arrayFromVolume=lambda node: node.array, updateVolumeFromArray=updated)
    for name, content in {
        "slicer": {"util": util},
        "vtk": {"vtkMatrix4x4": Matrix},
        "ModalityConverterLib": {},
        "ModalityConverterLib.ModelBase": {"BaseModel": BaseModel, "register_model": register_model},
    }.items():
        module = types.ModuleType(name)
        for key, value in content.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
    return registered


def test_the_class_translates_as_convert_does(
    run: Path, cohort: phantom.Cohort, tmp_path: Path, extension: dict[str, type], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory.translators, "bf16_is_safe", lambda device: False)
    written = export_run(run, tmp_path / "out", file_format="slicer")["ab"]
    key = written["key"]
    root = tmp_path / "out" / "ModalityConverter"
    entries = json.loads((root / "Resources" / "Models" / "metadata.json").read_text())
    assert list(entries) == [key] and set(entries[key]) == {"url", "display_name", "description", "module_name"}
    (module,) = (root / "ModalityConverterLib" / "ModelsImpl").iterdir()
    assert module.stem == entries[key]["module_name"]
    classes = [node.name for node in ast.parse(module.read_text()).body if isinstance(node, ast.ClassDef)]
    assert classes == [module.stem]
    (network,) = (root / "Resources" / "Models").glob("*.onnx")
    assert network.name.startswith(key)
    onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])

    scope: dict[str, Any] = {"__name__": "model", "__file__": str(module)}
    exec(compile(module.read_text(), str(module), "exec"), scope)
    model = extension[key](key)
    model.model = model._loadModelFromPath(str(network))

    volume = read_volume(cohort.test_mr[0])
    affine = volume.affine.numpy()
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    # Index (a, b, c) of what Slicer holds is index (c, n - 1 - a, b) of the file.
    array = volume.numpy()[0]
    places = np.array([[0, 0, 1, 0], [-1, 0, 0, array.shape[1] - 1], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
    held = np.ascontiguousarray(array.transpose(1, 2, 0)[::-1])
    grid = turn @ affine @ places
    mask = read_mask(cohort.test_mask[0], Grid(array.shape, affine))
    held_mask = np.ascontiguousarray(mask.transpose(1, 2, 0)[::-1])

    import nibabel as nib

    translator = factory.load_translator(run, device="cpu")
    result = Node(np.zeros(1), np.eye(4))
    model.runInference(Node(held.T, grid), result, Node(held_mask.T.astype(np.uint8), grid))
    expected = translator(nib.Nifti1Image(held, grid), body=held_mask)
    apart = np.abs(result.array.T.astype(float) - expected.array)
    assert result.array.dtype == np.int16 and expected.array.std() > 100
    np.testing.assert_array_equal(result.affine, grid)
    assert np.percentile(apart, 99.9) <= 1

    # Without a mask the body is found by a simpler rule.
    model.runInference(Node(held.T, grid), result)
    expected = translator(nib.Nifti1Image(held, grid))
    body = (result.array.T > -1000) | (expected.array > -1000)
    print("without a mask:", np.abs(result.array.T.astype(float) - expected.array)[body].mean(), "HU on average")
    assert np.mean((result.array.T > -1000) == (expected.array > -1000)) > 0.97

    with pytest.raises(RuntimeError, match="ON_WORKING_GRID"):
        model.runInference(Bare(held.T), result)


def test_what_the_class_does_not_do_is_refused(run: Path, tmp_path: Path) -> None:
    model = read_model(run, "ab")
    program = export_program(model.generator, channels=1, window=model.translator.window.roi_size)
    object.__setattr__(program, "size", (32, 32))
    with pytest.raises(InputError, match="exactly 32 x 32 voxels"):
        write_slicer(model, program, tmp_path / "out")
    assert not (tmp_path / "out").exists()
