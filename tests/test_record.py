"""run.json of a conversion: it claims nothing that is not so, whoever dies, writes at the same time, or damages it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medcyclegan import InputError, atomic, phantom
from medcyclegan.convert import Options, convert
from medcyclegan.inference.translator import Translator
from medcyclegan.record import FORMAT, VERSION, Record

HEAD: dict[str, Any] = {"model": {"checkpoints": [{"path": "x.pt", "sha256": "1"}], "direction": "ab"}, "settings": {}}
OTHER = {**HEAD, "model": HEAD["model"] | {"direction": "ba"}}


def entry(name: str, *uncertainty: str) -> dict[str, Any]:
    return {
        "output": f"/out/{name}",
        "uncertainty": {t: f"/out/uncertainty/{t}" for t in uncertainty},
        "voxels_sha256": ["v"],
        "quality": {},
    }


def write(record: Record, case: str, *uncertainty: str) -> None:
    folder = record.path.parent
    record.begin(case, folder / f"{case}_sct.nii.gz", [folder / "uncertainty" / t for t in uncertainty])
    (folder / f"{case}_sct.nii.gz").touch()
    record.add(case, entry(f"{case}_sct.nii.gz", *uncertainty))


def test_two_conversions_into_one_folder_lose_nothing(tmp_path: Path) -> None:
    records = [Record(tmp_path / "run.json", None, head) for head in (HEAD, HEAD, OTHER)]
    names = [[f"{who}{n}" for n in range(15)] for who in "abc"]
    threads = [
        threading.Thread(target=lambda r=record, own=own: [write(r, case) for case in own])
        for record, own in zip(records, names, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(records[0].finished()) == {*names[0], *names[1]} and set(records[2].finished()) == set(names[2])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_that_is_being_written_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "uncertainty").mkdir()
    (tmp_path / "uncertainty" / "a_spread.nii.gz").touch()
    (tmp_path / "a_sct.nii.gz").touch()
    first, second = (Record(tmp_path / "run.json", None, head) for head in (HEAD, OTHER))
    write(first, "a", "a_spread.nii.gz")
    write(first, "b")
    second.begin("a", tmp_path / "a_sct.nii.gz")  # and is killed
    assert set(first.finished()) == {"b"} and not (tmp_path / "uncertainty" / "a_spread.nii.gz").exists()
    assert set(second.unfinished()) == {"a"} and not first.unfinished() and not second.finished()
    # Uncertainty maps that are written over belong to no case, though another format has another file for the sCT.
    write(first, "c", "c_spread.nii.gz")
    second.begin("c", tmp_path / "c_sct.mha", [tmp_path / "uncertainty" / "c_spread.nii.gz"])
    assert set(first.finished()) == {"b"}
    # What failed and left nothing is in no doubt any more; what is there is.
    second.close({"c": "why"}, {})
    assert set(second.unfinished()) == {"a"}


def test_a_case_that_two_write_at_the_same_time_fails_in_both(tmp_path: Path) -> None:
    for head in (HEAD, OTHER):  # of the same model, and of another
        one, other = Record(tmp_path / "run.json", None, HEAD), Record(tmp_path / "run.json", None, head)
        one.begin("a", tmp_path / "a_sct.nii.gz")
        other.begin("a", tmp_path / "a_sct.nii.gz")
        with pytest.raises(InputError, match="at the same time"):
            one.add("a", entry("a_sct.nii.gz"))
        with pytest.raises(InputError, match="at the same time"):
            other.add("a", entry("a_sct.nii.gz"))
        assert not one.finished() and not other.finished() and set(other.unfinished()) == {"a"}
        # And whichever ends first.
        one.begin("a", tmp_path / "a_sct.nii.gz")
        other.begin("a", tmp_path / "a_sct.nii.gz")
        other.add("a", entry("a_sct.nii.gz"))
        with pytest.raises(InputError, match="at the same time"):
            one.add("a", entry("a_sct.nii.gz"))
        assert not one.finished() and not other.finished() and set(one.unfinished()) == {"a"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("version", [1, "2"])
def test_a_record_of_another_version_is_not_replaced(version: Any, overwrite: bool, tmp_path: Path) -> None:
    """Its results and maps would lie beside new ones unseen."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"format": FORMAT, "version": version, "program": {}, **HEAD, "cases": {}}))
    before = file.read_bytes()
    with pytest.raises(InputError, match=f"record of version {version!r}, and this program goes on .* another folder"):
        Record(file, None, HEAD, overwrite=overwrite).check()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"somebody": "else"}', "no record of a conversion"),
        ("[1, 2]", "no record of a conversion"),
        ("", "is not JSON"),
        ('{"format": ' * 5000, "cannot be used|is not JSON"),
        (f'{{"format": {"1" * 5000}}}', "cannot be used"),
        ('{"format": 1, "format": 2}', "given twice"),
        ("\udcff", "is no text in UTF-8"),
        ({"model": None}, "model is missing"),
        ({"model": {"checkpoints": [{"path": "x"}], "direction": "ab"}}, "model.checkpoints is no list"),
        ({"model": {"checkpoints": []}}, "model.direction is missing"),
        ({"settings": []}, "settings is missing or no object"),
        ({"cases": []}, "cases is missing or no object"),
        ({"cases": {"p": 3}}, "cases.p.output is missing"),
        ({"cases": {"p": {"output": "/"}}}, "cases.p.output"),
        (
            {"cases": {"p": {"output": "p.nii", "uncertainty": [], "voxels_sha256": [""]}}},
            "cases.p.uncertainty is no object",
        ),
        ({"cases": {"p": {"output": "p.nii", "uncertainty": {}}}}, "cases.p.voxels_sha256 is missing"),
        ({"failed": {"p": 1}}, "failed.p is no text"),
        ({"unfinished": {"p": {}}}, "unfinished.p.output"),
        ({"earlier": {}}, "earlier is no list"),
        ({"earlier": [{"program": {}}]}, r"earlier\[0\]\.model is missing"),
    ],
)
def test_what_is_no_record_or_damaged_is_named_and_replaced_only_when_asked(
    content: Any, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.json"
    if isinstance(content, dict):
        content = json.dumps({"format": FORMAT, "version": VERSION, "program": {}, **HEAD, "cases": {}} | content)
    file.write_bytes(content.encode(errors="surrogateescape"))
    before = file.read_bytes()
    record = Record(file, None, HEAD)
    for step in (record.check, record.finished, lambda: record.begin("p", tmp_path / "p_sct.nii.gz")):
        with pytest.raises(InputError, match=rf"run\.json.*({message}).*--overwrite"):
            step()
    assert file.read_bytes() == before
    replacing = Record(file, None, HEAD, overwrite=True)
    replacing.check()
    write(replacing, "p")
    assert set(Record(file, None, HEAD).finished()) == {"p"}


@pytest.fixture
def mr(cohort: phantom.Cohort, tmp_path: Path) -> Path:
    """A folder of two small MR volumes."""
    (tmp_path / "mr").mkdir()
    for name, file in zip(("p1", "p2"), cohort.train_mr, strict=True):
        shutil.copy(file, tmp_path / "mr" / f"{name}.nii.gz")
    return tmp_path / "mr"


def test_convert_leaves_what_another_program_wrote(run: Path, mr: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"somebody": "else"}')
    with pytest.raises(InputError, match=r"run\.json is no record of a conversion"):
        convert(run, [mr], tmp_path / "out", Options(device="cpu"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
    assert len(convert(run, [mr], tmp_path / "out", Options(overwrite=True, device="cpu")).written) == 2


class Killed(BaseException):
    """The end of a process at a moment of the test's choice."""


@contextmanager
def killed_at(number: int, when: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """From the `number`th move into place on, nothing is done any more: neither moved nor removed."""
    moves = [0]
    move, unlink = Path.replace, Path.unlink

    def replace(path: Path, to: Path) -> Path:
        moves[0] += 1
        if moves[0] == number and when == "after":
            move(path, to)
        if moves[0] >= number:
            raise Killed
        return move(path, to)

    def alive(function: Any) -> Any:
        return lambda *arguments, **options: function(*arguments, **options) if moves[0] < number else None

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        patch.setattr(Path, "unlink", alive(unlink))
        patch.setattr(atomic, "_remove", alive(atomic._remove))
        patch.setattr(shutil, "rmtree", alive(shutil.rmtree))
        yield moves


@pytest.mark.parametrize("file_format", ["nifti", "dicom"])
def test_after_any_kill_resume_equals_an_undisturbed_conversion(
    run: Path, mr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    def files(folder: Path) -> dict[str, Any]:
        return {
            str(path.relative_to(folder)): np.asarray(nib.load(path).dataobj).tobytes() if path.suffix == ".gz" else 0
            for path in sorted(folder.rglob("*"))
        }

    volume = mr / "p1.nii.gz"
    uncertainty = file_format == "nifti"
    convert(run, [volume], tmp_path / "whole", Options(file_format=file_format, uncertainty=uncertainty, device="cpu"))
    with killed_at(99, "before", monkeypatch) as moves:
        convert(
            run, [volume], tmp_path / "counted", Options(file_format=file_format, uncertainty=uncertainty, device="cpu")
        )
    assert moves[0] == (8 if uncertainty else 4)  # the record three times, the result, and four uncertainty maps
    last = moves[0]  # the record closed; before it, the case added, and before that the result
    for number, when in (
        (1, "after"),
        (last - 2, "before"),
        (last - 2, "after"),
        (last - 1, "after"),
        (last, "before"),
    ):
        out = tmp_path / f"{number}{when}"
        with killed_at(number, when, monkeypatch), pytest.raises(Killed):
            convert(run, [volume], out, Options(file_format=file_format, uncertainty=uncertainty, device="cpu"))
        again = convert(
            run, [volume], out, Options(file_format=file_format, uncertainty=uncertainty, resume=True, device="cpu")
        )
        assert not again.failed and len(again.written) + len(again.skipped) == 1
        assert files(out) == files(tmp_path / "whole"), (number, when)
        content = json.loads((out / "run.json").read_text())
        assert set(content["cases"]) == {"p1"} and "unfinished" not in content and content["device"] == "cpu"


def test_what_was_being_replaced_is_claimed_by_nobody(
    run: Path, mr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    for weight in content["ema"]["gen_ab"].values():
        weight.neg_()
    torch.save(content, tmp_path / "other.pt")
    convert(run, [mr], tmp_path / "out", Options(device="cpu"))
    # Killed when the second result of the other model was in place, and its record was not.
    with killed_at(5, "after", monkeypatch), pytest.raises(Killed):
        convert(tmp_path / "other.pt", [mr], tmp_path / "out", Options(overwrite=True, device="cpu"))
    with pytest.raises(InputError, match=r"p1_sct\.nii\.gz, written with another model.*\n.*p2_sct"):
        convert(run, [mr], tmp_path / "out", Options(resume=True, device="cpu"))
    again = convert(tmp_path / "other.pt", [mr], tmp_path / "out", Options(resume=True, device="cpu"))
    assert set(again.skipped) == {"p1"} and set(again.written) == {"p2"}


def test_whatever_one_case_raises_the_others_go_on(
    run: Path, mr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Translator.predict
    for error, message in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the device has not enough memory"),
        (RuntimeError("cuDNN gave up"), "RuntimeError: cuDNN gave up"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ):
        calls: list[int] = []

        def fail(
            self: Translator, *arguments: Any, error: Exception = error, calls: Any = calls, **options: Any
        ) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise error
            return predict(self, *arguments, **options)

        monkeypatch.setattr(Translator, "predict", fail)
        result = convert(run, [mr], tmp_path / message[:12], Options(device="cpu"))
        assert set(result.written) == {"p2"} and message in result.failed["p1"]
