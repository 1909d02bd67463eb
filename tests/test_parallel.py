"""Work side by side: every task once, failures told, a killed process blamed on its task alone."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import pytest

from medcyclegan.data.parallel import Crew
from medcyclegan.errors import InputError
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
    if number == 5:
        raise KeyError("a fault of the program")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_leaves_the_others_alone(workers: int, tmp_path: Path) -> None:
    tasks = {str(n): (n, str(tmp_path)) for n in (0, 1, 2, 3)}
    with pytest.warns(UserWarning, match="three is odd"), Crew(workers, Silent()) as crew:
        results = dict(crew.each(work, tasks, "working"))
    assert {n: r for n, r in results.items() if n != "2"} == {"0": 0, "1": 1, "3": 9}
    assert isinstance(results["2"], InputError) and str(results["2"]) == "two is not liked. Take three."
    assert all((tmp_path / n).read_text() == "x" for n in tasks)


@pytest.mark.slow
def test_a_killed_process_is_blamed_on_its_task(tmp_path: Path) -> None:
    tasks = {str(n): (n, str(tmp_path)) for n in (4, 0, 1)}
    with Crew(2, Silent()) as crew:
        results = dict(crew.each(work, tasks, "working"))
    assert isinstance(results["4"], InputError) and "was killed" in str(results["4"])
    assert (results["0"], results["1"]) == (0, 1)


def test_a_fault_of_the_program_is_not_hidden(tmp_path: Path) -> None:
    with Crew(1, Silent()) as crew, pytest.raises(KeyError):
        list(crew.each(work, {"5": (5, str(tmp_path))}, "working"))


def test_workers(tmp_path: Path) -> None:
    with Crew(0, Silent()) as crew:  # two tasks are done before a process has loaded its libraries
        assert dict(crew.each(work, {str(n): (n, str(tmp_path)) for n in (1, 0)}, "working")) == {"1": 1, "0": 0}
        assert crew._pool is None
    with pytest.raises(InputError, match="workers is -1"):
        Crew(-1, Silent())
