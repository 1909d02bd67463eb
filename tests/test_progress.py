"""Warnings about many volumes come as one line per kind."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from medcyclegan import cli, config
from medcyclegan.cli import printing
from medcyclegan.errors import InputError
from medcyclegan.progress import Notices, by_kind


def test_warnings_of_a_kind_are_one_line_with_their_number_and_three_names() -> None:
    warnings = [
        line
        for n in range(1, 101)
        for line in (
            f"/d/p{n}.nii.gz: the header gives its lengths in microns; they are taken as millimetres.",
            f"p{n}: {n * 1.5:g} mL at the body were overwritten",
            f"p{n}: brightness jumps at slices {', '.join(map(str, range(n)))}",
        )
        if n != 100 or "mL" not in line
    ]
    lines = by_kind(warnings)
    assert lines == [
        "the header gives its lengths in microns; they are taken as millimetres. "
        "(100 like this: /d/p1.nii.gz, /d/p2.nii.gz, /d/p3.nii.gz, ...)",
        "1.5 mL at the body were overwritten (99 like this: p1, p2, p3, ...; the numbers are those of p1)",
        "brightness jumps at slices 0 (100 like this: p1, p2, p3, ...; the numbers are those of p1)",
    ]


def test_what_is_of_no_kind_stays_as_it_is() -> None:
    lines = [
        "p1: the values look like a CT",
        "p1: 3 slices are missing here",
        "goes on from step 2 with training.steps: 2 -> 4",
        "goes on from step 2 with training.batch_size: 1 -> 2",
        "nothing was validated",
    ]
    assert by_kind(lines) == lines
    assert by_kind([*lines, *lines]) == lines
    assert by_kind([]) == []
    # Twice of one volume, with both numbers; of two volumes both names; whatever volumes are called.
    assert by_kind(["p1: gap of 3 mm found", "p1: gap of 5 mm found"]) == ["p1: gap of 3 mm found; gap of 5 mm found"]
    lines = by_kind([f"p1: gap of {n} mm found" for n in range(2, 7)])
    assert lines == ["p1: gap of 2 mm found; gap of 3 mm found; gap of 4 mm found; and 2 more"]
    assert by_kind(["1: lost 1 mL of body", "34: lost 34 mL of body"]) == [
        "lost 1 mL of body (2 like this: 1, 34; the numbers are those of 1)"
    ]


def test_they_are_shown_before_the_error_that_ends_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: object, **__: object) -> None:
        for name in ("p1", "p2"):
            printing.warn(f"{name}: far from all others")
        raise InputError("the end")

    monkeypatch.setattr(config, "load", prepare)
    done = CliRunner().invoke(cli.app, ["prepare", "-o", "x"])
    assert done.stderr == "warning: far from all others (2 like this: p1, p2)\n" and str(done.exception) == "the end"


def test_a_training_shows_at_once_what_comes_after_it_began() -> None:
    shown: list[str] = []
    notices = Notices(shown.append)
    notices.take("a: of one kind here")
    notices.take("b: of one kind here")
    assert not shown
    notices.attach(object())
    assert shown == ["of one kind here (2 like this: a, b)"]
    notices.take("step 3: not finite: look")
    assert shown[1:] == ["step 3: not finite: look"]
    notices.release()
    notices.take("c: held again for the next verb")
    assert len(shown) == 2
