"""Checkpoints: ours are read, everything else is refused by name, and nothing in them runs."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from medcyclegan.errors import InputError
from medcyclegan.training import checkpoint
from medcyclegan.training.checkpoint import FORMAT, load_checkpoint, save_checkpoint


def test_describes_itself(run: Path) -> None:
    content = load_checkpoint(run)
    assert content["format"] == FORMAT
    assert content["experiment"]["model"]["generator"]["filters"] == 4
    assert content["domains"]["b"]["preparation"]["modality"] == "CT"
    assert content["domains"]["b"]["scaler"] == {"low": -1024.0, "high": 3071.0, "inverted": False, "floor": -1.0}
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
        torch.save({"format": FORMAT, "version": 1, "x": Trap()}, file)
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


def test_missing_and_newer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run or checkpoint"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no checkpoint\.pt"):
        load_checkpoint(tmp_path)
    torch.save({"format": FORMAT, "version": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="newer medcyclegan"):
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
