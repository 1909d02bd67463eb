"""Checkpoints: ours are read, everything else is refused by name, and nothing in them runs."""

from __future__ import annotations

import copy
import errno
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from medcyclegan import factory
from medcyclegan.errors import InputError
from medcyclegan.training import checkpoint
from medcyclegan.training.checkpoint import FORMAT, VERSION, load_checkpoint, save_checkpoint
from medcyclegan.training.recorder import _drop_rows_after


def test_describes_itself(run: Path) -> None:
    content = load_checkpoint(run)
    assert content["format"] == FORMAT
    assert content["experiment"]["model"]["generator"]["filters"] == 4
    (channel,) = content["domains"]["b"]["channels"]
    assert channel["preparation"]["modality"] == channel["preparation"]["name"] == "CT"
    assert channel["scaler"] == {"low": -1024.0, "high": 3071.0, "inverted": False, "floor": -1.0}
    assert content["program"]["torch"]
    assert set(content["networks"]) == {"gen_ab", "gen_ba", "disc_a", "disc_b"}


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trap-was-sprung"),))


def make(kind: str, folder: Path, run: Path) -> Path:
    file = folder / "checkpoint.pt"
    whole = (run / "checkpoint.pt").read_bytes()
    if kind == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        file.write_text("hello")
    elif kind == "empty":
        file.touch()
    elif kind == "foreign":
        torch.save({"state_dict": {"w": torch.zeros(2)}}, file)
    elif kind == "tensor":
        torch.save(torch.zeros(3), file)
    elif kind == "code":
        torch.save({"format": FORMAT, "version": VERSION, "x": Trap()}, file)
    return file


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "foreign", "tensor", "code"])
def test_what_is_not_ours_is_refused(kind: str, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = make(kind, tmp_path, run)
    with pytest.raises(InputError, match=r"checkpoint\.pt is not a medcyclegan checkpoint"):
        load_checkpoint(file)
    assert not (tmp_path / "trap-was-sprung").exists()


def test_another_file_of_a_run_is_not_called_damaged(run: Path) -> None:
    with pytest.raises(InputError, match="Give the output folder of `medcyclegan train`"):
        load_checkpoint(run / "config.yaml")


def test_missing_newer_and_older(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run or checkpoint"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no checkpoint\.pt"):
        load_checkpoint(tmp_path)
    torch.save({"format": FORMAT, "version": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="newer medcyclegan"):
        load_checkpoint(tmp_path)
    old = {"format": FORMAT, "version": VERSION - 1, "program": {"medcyclegan": "0.1.0"}}
    torch.save(old, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=rf"written by medcyclegan 0\.1\.0 .*reads format {VERSION}.*train again"):
        load_checkpoint(tmp_path)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "checkpoint.pt"
    save_checkpoint({"step": 1}, file)

    def full(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({"step": 2}, file)
    assert load_checkpoint(file)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def wrong(content: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The checkpoint with one field another one, or without it (`...`); parts of the name are joined by a dot."""
    changed = copy.deepcopy(content)
    *parents, last = field.split(".")
    place = changed
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return changed


NAN = float("nan")


@pytest.fixture(scope="module")
def whole(run: Path) -> dict[str, Any]:
    return load_checkpoint(run)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, ...)
            for field in ("experiment", "domains", "step", "ema", "domains.a", "domains.b.channels.0.scaler")
        ),
        *((field, "wild") for field in ("experiment", "domains", "step", "ema", "ema.gen_ab", "domains.b.channels")),
        ("domains.b.channels.0", "wild"),
        ("domains.b.channels.0.preparation", "wild"),
        ("domains.b.channels", []),
        ("version", None),
        ("version", "1"),
        ("version", NAN),
        ("step", NAN),
        ("step", -1),
        ("best", {"step": 1}),
        ("domains.a.name", 3),
        ("domains.a.cohort", [{"spacing_mm": "?"}]),
        ("domains.a.channels.0.preparation.spacing", (1.0, NAN, 1.0)),
        ("domains.a.channels.0.preparation.spacing", (1.0, 1.0)),
        ("domains.a.channels.0.preparation.modality", "PET"),
        ("domains.a.channels.0.preparation.more", 1),
        ("domains.a.channels.0.preparation.mr_inverted", "no"),
        ("domains.a.channels.0.preparation.mr_percentiles", (99.5, 0.5)),
        ("domains.b.channels.0.preparation.ct_window", (-1024.0, NAN)),
        ("domains.b.channels.0.scaler.inverted", "false"),
        ("domains.b.channels.0.scaler.high", -5000.0),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(
    field: str, value: Any, whole: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(wrong(whole, field, value), tmp_path / "checkpoint.pt")
    section = r"\.".join(field.split(".")[:5]) if value is not ... else field.split(".")[0]
    with pytest.raises(InputError, match=rf"(?s){tmp_path}/checkpoint\.pt is damaged: {section}"):
        factory.load_translator(tmp_path, device="cpu")


def test_weights_that_do_not_fit_or_are_no_numbers_are_named(whole: dict[str, Any], tmp_path: Path) -> None:
    key, weight = next((k, w) for k, w in whole["ema"]["gen_ab"].items() if w.is_floating_point())
    for value, message in (
        (torch.full_like(weight, NAN), rf"ema\.gen_ab\.{re.escape(key)} holds values that are not numbers"),
        ("wild", rf"ema\.gen_ab\.{re.escape(key)} is of type str"),
        (weight[..., :1], "ema.gen_ab cannot be used .*size mismatch"),
    ):
        content = copy.deepcopy(whole)
        content["ema"]["gen_ab"][key] = value
        torch.save(content, tmp_path / "checkpoint.pt")
        with pytest.raises(InputError, match=rf"(?s)is damaged: {message}"):
            factory.load_translator(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("networks", ...),
        ("optimizers.generators", ...),
        ("optimizers.generators.param_groups", []),
        ("optimizers.discriminators.state", {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1)}}),
        ("schedulers.generators.step", "wild"),
        ("objective.pools.a.images", [torch.zeros(1, 2), torch.zeros(1, 3)]),
        ("random.cpu", torch.zeros(3, dtype=torch.uint8)),
        ("random.python", (3, (1, 2), None)),
        ("companions.finite.pending", [(1, ["x"], torch.tensor([True, False]))]),
        ("companions.validation", {}),
        ("given", 3),
    ],
)
def test_a_state_that_cannot_be_gone_on_from_is_named(
    field: str, value: Any, whole: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(wrong(whole, field, value), tmp_path / "checkpoint.pt")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError) as raised, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factory.resume(tmp_path, device="cpu")
    section = field.split(".")[0] if field.startswith(("random", "objective")) else ".".join(field.split(".")[:2])
    assert f"{tmp_path}/checkpoint.pt is damaged: {section} " in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt"}
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"step,x\nwild,1\n", b"\xff\xfe\n\xff\n", b"step\n\n\n"])
def test_a_damaged_table_of_a_run_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.csv is damaged: .*Move it away"):
        _drop_rows_after(tmp_path / "metrics.csv", 5)
    assert (tmp_path / "metrics.csv").read_bytes() == content
