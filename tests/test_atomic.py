"""Files and folders are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medcyclegan.atomic import atomic_file, atomic_folder, exclusive, sweep, write_json


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.nii.gz"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="crash"), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("crash")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_success_replaces_and_keeps_the_suffix_while_writing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.nii.gz"
    with atomic_file(target) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_folder_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "case"
    with atomic_folder(target) as temporary:
        (temporary / "x").write_text("old")
    with pytest.raises(RuntimeError, match="crash"), atomic_folder(target) as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError("crash")
    assert (target / "x").read_text() == "old"
    with atomic_folder(target) as temporary:
        (temporary / "y").write_text("new")
    assert [path.name for path in target.iterdir()] == ["y"]
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_a_folder_that_cannot_be_moved_into_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "case"
    target.mkdir()
    (target / "x").write_text("old")
    move = Path.replace

    def fail(path: Path, to: Path) -> Path:
        if path.name.startswith(".partial-"):
            raise OSError(errno.EIO, "Input/output error")
        return move(path, to)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(target) as temporary:
        (temporary / "x").write_text("new")
    assert (target / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 0.1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1}


@pytest.mark.parametrize(
    "error", [OSError("902629 requested and 524256 written"), RuntimeError("unexpected pos 1594688")]
)
def test_a_full_disk_is_called_so_whatever_a_library_says(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    for writing in (atomic_file, atomic_folder):
        with pytest.raises(OSError, match="No space left") as caught, writing(tmp_path / "out"):
            raise error
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 30))
    with pytest.raises(type(error), match=str(error)), atomic_file(tmp_path / "out"):
        raise error


def test_processes_change_a_file_one_after_another_and_the_dead_let_go(tmp_path: Path) -> None:
    counter, count = tmp_path / "counter.json", 4
    program = """
import json, os, pathlib, signal, sys
from medcyclegan.atomic import exclusive, write_json
path = pathlib.Path(sys.argv[1])
for _ in range(50):
    with exclusive(path):
        write_json(path, json.loads(path.read_text()) + 1)
with exclusive(path):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    write_json(counter, 0)
    command = [sys.executable, "-c", program, str(counter)]
    started = [subprocess.Popen(command, cwd=Path(__file__).parents[1]) for _ in range(count)]
    assert [process.wait(timeout=120) for process in started] == [-signal.SIGKILL] * count
    assert json.loads(counter.read_text()) == 50 * count
    with exclusive(counter):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".counter.json.lock", "counter.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["counter.json"]


KILLED = """
import os, pathlib, signal, sys
from medcyclegan.atomic import atomic_file, atomic_folder
folder, where = pathlib.Path(sys.argv[1]), sys.argv[2]
if where == "in file":
    with atomic_file(folder / "x.nii.gz") as temporary:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
with atomic_folder(folder / "series") as temporary:
    (temporary / "1.dcm").write_bytes(b"new")
    if where == "in folder":
        os.kill(os.getpid(), signal.SIGKILL)
    if where == "between renames":
        move = pathlib.Path.replace
        def once(path, to):
            if path.name.startswith(".partial-"):
                os.kill(os.getpid(), signal.SIGKILL)
            return move(path, to)
        pathlib.Path.replace = once
    if where == "after renames":
        import shutil
        shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("where", ["in file", "in folder", "between renames", "after renames"])
def test_what_the_killed_have_left_is_swept_and_what_they_had_moved_away_is_put_back(
    where: str, tmp_path: Path
) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"old")
    (tmp_path / "x.nii.gz").write_bytes(b"old")
    for name in (".partial-notes", ".partial-0123456789-x", ".former-house.nii.gz"):  # not ours
        (tmp_path / name).write_text("mine")
    mine = {path.name for path in tmp_path.iterdir()}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, where], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()} - mine
    assert left and all(name[1:].startswith(("partial-", "former-", "locked-")) for name in left)
    with atomic_file(tmp_path / "y.json") as living:  # of this process, which lives
        sweep(tmp_path, "x.nii.gz" if where != "in file" else "series")  # of another thing
        assert left <= {path.name for path in tmp_path.iterdir()}
        sweep(tmp_path)
        assert living.exists()
        living.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == mine | {"y.json"}
    assert (tmp_path / "x.nii.gz").read_bytes() == b"old" and (tmp_path / "y.json").read_text() == "whole"
    assert (tmp_path / "series" / "1.dcm").read_bytes() == (b"new" if where == "after renames" else b"old")


def test_the_same_write_sweeps_before_it_begins(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, "in file"], cwd=Path(__file__).parents[1], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_file(tmp_path / "x.nii.gz") as temporary:
        assert len(list(tmp_path.iterdir())) == 2
        temporary.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x.nii.gz"]


def test_without_locks_everything_is_written_and_nothing_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    subprocess.run([sys.executable, "-c", KILLED, tmp_path, "in folder"], cwd=Path(__file__).parents[1], check=False)
    left = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr("fcntl.flock", no_locks)
    sweep(tmp_path)
    write_json(tmp_path / "a.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == left | {"a.json"}
    with pytest.raises(OSError, match="locks"), exclusive(tmp_path / "a.json"):
        pass


def test_an_error_within_is_never_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    for writing in (atomic_file, atomic_folder, exclusive):
        for error in (FileExistsError, BlockingIOError, FileNotFoundError):
            with pytest.raises(error, match="within"), writing(tmp_path / "x"):
                raise error("within")
    assert not list(tmp_path.iterdir())
