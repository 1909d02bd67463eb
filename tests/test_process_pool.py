"""Work side by side: every task once, failures named, a killed process blamed on its task alone."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch

from medcyclegan import process_pool
from medcyclegan.errors import InputError
from medcyclegan.process_pool import ProcessPool
from medcyclegan.progress import Silent


def work(number: int, folder: str) -> int:
    with (Path(folder) / f"{number}").open("a") as stream:
        stream.write("x")
    if number == 2:
        raise InputError("two is not liked.", "Take three.")
    if number == 3:
        warnings.warn("three is odd", stacklevel=1)
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 6:
        raise MemoryError
    if number == 5:
        raise KeyError("a fault of the program")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_leaves_the_others_alone(workers: int, tmp_path: Path) -> None:
    tasks = {str(n): (n, str(tmp_path)) for n in (0, 1, 2, 3, 6)}
    with pytest.warns(UserWarning, match="three is odd"), ProcessPool(workers, Silent()) as pool:
        results = dict(pool.each(work, tasks, "working"))
    assert {n: r for n, r in results.items() if n not in "26"} == {"0": 0, "1": 1, "3": 9}
    assert isinstance(results["6"], InputError) and "more memory than there is" in str(results["6"])
    assert isinstance(results["2"], InputError) and str(results["2"]) == "two is not liked. Take three."
    assert all((tmp_path / n).read_text() == "x" for n in tasks)


@pytest.mark.slow
def test_a_killed_process_is_blamed_on_its_task(tmp_path: Path) -> None:
    tasks = {n: (n, str(tmp_path)) for n in (4, 0, 1, *range(7, 17))}
    with ProcessPool(2, Silent()) as pool:
        results = dict(pool.each(work, tasks, "working"))
        again = dict(pool.each(work, {n: tasks[n] for n in (0, 1)}, "working"))
    assert isinstance(error := results.pop(4), InputError) and "was killed" in str(error) and "--workers" in str(error)
    assert results == {n: n * n for n in tasks if n != 4} and again == {0: 0, 1: 1}
    # Only what was handed over when the process died may be done twice.
    assert sum(len((tmp_path / f"{n}").read_text()) - 1 for n in tasks) <= 4


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fault_of_the_program_is_not_hidden(workers: int, tmp_path: Path) -> None:
    with ProcessPool(workers, Silent()) as pool, pytest.raises(KeyError):
        list(pool.each(work, {n: (n, str(tmp_path)) for n in (0, 5)}, "working"))


def threads() -> tuple[int, int]:
    return torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()


@pytest.mark.slow
def test_thousands_of_tasks_wait_here_and_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "cores", lambda: 6)
    given = []
    submit = ProcessPool._submit

    def counted(self: ProcessPool, *arguments: Any) -> Any:
        given.append(arguments)
        return submit(self, *arguments)

    monkeypatch.setattr(ProcessPool, "_submit", counted)
    with ProcessPool(2, Silent()) as pool:
        results = pool.each(threads, dict.fromkeys(range(5000), ()), "working")
        assert next(results)[1] == (3, 3)
        assert len(given) < 10


def test_there_is_one_pool_of_processes() -> None:
    """A pool of one's own would lack one of the properties above; a measurement needs a process that is new."""
    package = Path(process_pool.__file__).parent
    users = {path for path in package.rglob("*.py") if "ProcessPoolExecutor" in path.read_text(encoding="utf-8")}
    assert users == {Path(process_pool.__file__), package / "benchmark" / "train.py"}


def test_workers(tmp_path: Path) -> None:
    with ProcessPool(0, Silent()) as pool:  # two tasks are done before a process has loaded its libraries
        assert dict(pool.each(work, {str(n): (n, str(tmp_path)) for n in (1, 0)}, "working")) == {"1": 1, "0": 0}
        assert pool._pool is None
    with pytest.raises(InputError, match="workers is -1"):
        ProcessPool(-1, Silent())


def begin_and_die(folder: str) -> None:
    """A program that is killed while two processes work for it."""
    with ProcessPool(2, Silent()) as pool:
        list(pool.each(begin_and_wait, {str(n): (folder,) for n in (1, 2)}, "working"))


def begin_and_wait(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}").touch()
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_processes_end_with_the_program_that_was_killed(tmp_path: Path) -> None:
    """Otherwise they would finish what they have begun, beside those of the next try."""
    program = get_context("spawn").Process(target=begin_and_die, args=(str(tmp_path),))
    program.start()
    deadline = time.monotonic() + 120
    while len(started := [int(f.name) for f in tmp_path.iterdir()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    program.kill()
    program.join()
    while any(works(pid) for pid in started):
        assert time.monotonic() < deadline, "they work on"
        time.sleep(0.05)


def works(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
