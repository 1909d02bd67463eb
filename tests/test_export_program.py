"""Exported programs and ONNX files are the networks that they were made of."""

from __future__ import annotations

import json
import resource
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from medcyclegan import config, factory, phantom
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.export.formats import export_run
from medcyclegan.export.onnx import save_onnx
from medcyclegan.export.program import Program, export_program, save_program
from medcyclegan.registry import GENERATORS
from medcyclegan.transforms.intensity import Scaler

SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"filters": 4, "blocks": 1},
    "unet": {"filters": 4, "depth": 3},
    "attention_unet": {"filters": 4, "depth": 2},
    "mask_guided": {"filters": 4, "blocks": 1},
    "vit_unet": {"filters": 4, "depth": 2, "blocks": 1, "heads": 2},
    "swin_unetr": {"filters": 12},
}


def small(name: str, dims: int = 2, channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    given = {"in_channels": channels, "out_channels": channels, "spatial_dims": dims}
    network: nn.Module = GENERATORS.build({"_target_": name, **SMALL[name]}, **given)
    return network.eval().requires_grad_(False)


def images(channels: int, sizes: list[tuple[int, ...]]) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.rand(batch, channels, *spatial, generator=random) * 2 - 1 for batch, *spatial in sizes]


def assert_program_is(program: Program, network: nn.Module, path: Path, sizes: list[tuple[int, ...]]) -> None:
    save_program(program, path)
    loaded = torch.export.load(path).module()
    for image in images(program.channels, sizes):
        np.testing.assert_allclose(loaded(image).numpy(), network(image).numpy(), atol=1e-3)


def assert_onnx_is(program: Program, network: nn.Module, path: Path, sizes: list[tuple[int, ...]]) -> None:
    save_onnx(program, network, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for image in images(program.channels, sizes):
        (made,) = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(made, network(image).numpy(), atol=1e-3)


def test_program_takes_any_batch_and_size(tmp_path: Path) -> None:
    network = small("unet", channels=3)
    program = export_program(network, channels=3, window=(32, 32))
    assert program.size is None
    assert_program_is(program, network, tmp_path / "model.pt2", [(1, 16, 16), (4, 31, 57), (2, 100, 33)])


def test_a_program_is_saved_without_a_word_of_torch(tmp_path: Path) -> None:
    network = small("unet", channels=1)
    for weight in network.parameters():  # views, as some of a checkpoint's are
        weight.data = torch.cat([weight.flatten(), torch.zeros(1)])[:-1].view(weight.shape)
    program = export_program(network, channels=1, window=(32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_program(program, tmp_path / "model.pt2")
    assert_program_is(program, network, tmp_path / "model.pt2", [(1, 16, 16)])


def test_onnx_takes_any_batch_and_size(tmp_path: Path) -> None:
    network = small("resnet")
    program = export_program(network, channels=1, window=(32, 32))
    assert_onnx_is(program, network, tmp_path / "model.onnx", [(1, 32, 32), (3, 45, 61), (2, 100, 18)])
    model = onnx.load(tmp_path / "model.onnx")
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param for axis in axes] == ["batch", "", "x", "y"] and axes[1].dim_value == 1
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention_unet", "mask_guided", "vit_unet"])
def test_onnx_of_other_generators(name: str, tmp_path: Path) -> None:
    network = small(name)
    program = export_program(network, channels=1, window=(32, 32))
    assert_onnx_is(program, network, tmp_path / "model.onnx", [(1, 32, 32), (3, 45, 61), (2, 100, 18)])


@pytest.mark.slow
def test_onnx_in_3d(tmp_path: Path) -> None:
    network = small("unet", dims=3)
    program = export_program(network, channels=1, window=(32, 32, 32))
    assert_onnx_is(program, network, tmp_path / "model.onnx", [(1, 16, 16, 16), (2, 19, 33, 24)])


@pytest.mark.slow
def test_a_swin_transformer_takes_its_window_only(tmp_path: Path) -> None:
    network = small("swin_unetr")
    program = export_program(network, channels=1, window=(64, 64))
    assert program.size == (64, 64) and program.shape_rule() == "exactly 64 x 64 voxels"
    assert_program_is(program, network, tmp_path / "model.pt2", [(1, 64, 64), (3, 64, 64)])


def test_a_network_that_cannot_be_exported_is_named_with_the_reason() -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(InputError, match=r"Undecided cannot be exported .*bundle"):
        export_program(Undecided().eval(), channels=1, window=(32, 32))


def test_a_program_that_differs_is_refused() -> None:
    class Forgetful(nn.Module):
        """Does something else in a program than outside of one."""

        def forward(self, x: Tensor) -> Tensor:
            return x * 0.5 if torch.compiler.is_exporting() else x

    with pytest.raises(InputError, match="differs"):
        export_program(Forgetful().eval(), channels=1, window=(32, 32))


def test_what_the_sidecar_says_is_enough(run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    """A prepared slice, scaled, shown and scaled back by `model.json` alone, is what the translator gives."""
    written = export_run(run, tmp_path / "out", file_format="onnx")["ab"]
    assert written["difference"] <= 1e-3 and written["finished"]
    sidecar = json.loads((tmp_path / "out" / "model.json").read_text())
    translator = factory.load_translator(run, device="cpu")
    translator.window = replace(translator.window, bf16=False)
    source = translator.read(cohort.test_mr[0])
    prediction = translator.predict(source)
    k = int(source.case.body.sum(axis=(0, 1)).argmax())

    low, high = source.case.channels[0].scaler.low, source.case.channels[0].scaler.high
    assert sidecar["input"]["scaling"]["percentiles_inside_body"] == [0.5, 99.5]
    unit = -(2 * (np.linspace(low, high, 5) - low) / (high - low) - 1)
    floor = sidecar["input"]["scaling"]["floor"]
    assert sidecar["input"]["scaling"]["inverted"] is True
    expected = source.case.channels[0].scaler.apply(np.linspace(low, high, 5))
    np.testing.assert_allclose((unit + 1) * (1 - floor) / 2 + floor, expected, atol=1e-6)

    image, window = source.case.image[0, :, :, k], sidecar["window"]
    cut = []
    for axis, wanted in enumerate(window):
        occupied = np.flatnonzero(source.case.body.any(axis=(1 - axis, 2)))
        longer = image.shape[axis] > wanted
        first = max(0, occupied[0] - 4) if longer else 0
        last = min(image.shape[axis], occupied[-1] + 5) if longer else image.shape[axis]
        missing = max(0, wanted - (last - first))
        cut.append((slice(first, last), (missing // 2, missing - missing // 2)))
    shown = np.pad(image[cut[0][0], cut[1][0]], [pad for _, pad in cut], constant_values=-1)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    made = session.run(None, {sidecar["network"]["input"]["name"]: shown[None, None]})[0][0, 0]
    inner = made[tuple(slice(b, n - a) for (_, (b, a)), n in zip(cut, made.shape, strict=True))]
    there = prediction.values[cut[0][0], cut[1][0], k]
    np.testing.assert_allclose(inner, there, atol=1e-3)
    output = sidecar["output"]
    hu = output["low"] + (inner + 1) / 2 * (output["high"] - output["low"])
    np.testing.assert_allclose(hu, Scaler(-1024, 3071).undo(inner), atol=0.01)
    assert sidecar["spacing_mm"] == list(translator.source.preparations[0].spacing)


def test_refusals(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    for given, message in (
        ({"output": tmp_path / "there"}, "exists already"),
        ({"file_format": "torchscript"}, "pt2"),
        ({"file_format": "tensorflow"}, "bundle, onnx, pt2, slicer"),
        ({"direction": "aa"}, "ab, ba or both"),
        ({"direction": "both", "scores": tmp_path}, "one by one"),
        ({"scores": tmp_path}, "There is no .*summary.json"),
    ):
        arguments: dict[str, Any] = {"output": tmp_path / "new", **given}
        with pytest.raises(InputError, match=message):
            export_run(run, **arguments)
        assert not (tmp_path / "new").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnxscript.*pip install .*\.\[export\]"):
        export_run(run, tmp_path / "new", file_format="onnx")


def test_both_directions_and_a_half_trained_run(prepared: PreparedCohort, tmp_path: Path) -> None:
    """A run that was stopped can be exported, and its card says so."""
    experiment = config.parse({**TINY, "data": {"source": str(prepared.folder)}}, "the test")
    factory.train(experiment, tmp_path / "run", device="cpu")
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["step"] = 3
    torch.save(content, path)
    written = export_run(tmp_path / "run", tmp_path / "out", file_format="pt2", direction="both")
    assert [entry["finished"] for entry in written.values()] == [False, False]
    for direction in ("ab", "ba"):
        card = (tmp_path / "out" / direction / "README.md").read_text()
        assert "Half trained" in card and "step 3 of 4" in card
        assert torch.export.load(tmp_path / "out" / direction / "model.pt2")
    assert "on the voxel grid" in card and "not for clinical" in (tmp_path / "out/ba/model.json").read_text()


def test_a_disk_that_is_full_ends_an_export_with_an_error_and_not_the_process(tmp_path: Path) -> None:
    made = torch.export.export(nn.Linear(60, 60), (torch.zeros(1, 60),))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # no file may become larger, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            save_program(SimpleNamespace(exported=made), tmp_path / "model.pt2")  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
