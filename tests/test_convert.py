"""Conversion of many cases into files: formats, records, resuming, shards."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from medcyclegan import InputError, load_translator, phantom
from medcyclegan.convert import Options, convert
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.translator import Source, Translator
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.io.writer import write_volume


@pytest.fixture
def mr(cohort: phantom.Cohort, tmp_path: Path) -> Path:
    """A folder of three small MR volumes."""
    folder = tmp_path / "mr"
    folder.mkdir()
    for name, file in zip(("p1", "p2", "p3"), (*cohort.train_mr, *cohort.test_mr), strict=True):
        shutil.copy(file, folder / f"{name}.nii.gz")
    return folder


def record(folder: Path, name: str = "run.json") -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_run_json_says_what_was_made_of_what_by_what(run: Path, mr: Path, tmp_path: Path) -> None:
    result = convert(run, [mr], tmp_path / "out", Options(device="cpu"))
    assert not result.failed and set(result.written) == {"p1", "p2", "p3"}
    content = record(tmp_path / "out")
    assert content["program"]["medcyclegan"] and content["program"]["torch"] == torch.__version__
    assert len(content["model"]["checkpoints"][0]["sha256"]) == 64 and content["model"]["direction"] == "ab"
    assert content["device"] == "cpu" and content["seconds"] > 0
    case = content["cases"]["p1"]
    assert case["inputs"] == [str(mr / "p1.nii.gz")] and Path(case["output"]).exists() and case["seconds"] > 0
    assert case["quality"]["precision"] in (["float32"], ["bf16"])
    assert case["quality"]["cohort"] == "known" and case["quality"] == result.quality["p1"]
    header = nib.load(result.written["p1"]).header["descrip"].tobytes()
    assert b"medcyclegan" in header and b"not for clinical use" in header and b"step 4" in header


def test_every_format_holds_the_same_sct_and_names_the_model(run: Path, mr: Path, tmp_path: Path) -> None:
    voxels = []
    for file_format, ending in (("nifti", ".nii.gz"), ("mha", ".mha"), ("nrrd", ".nrrd")):
        result = convert(
            run, [mr / "p1.nii.gz"], tmp_path / file_format, Options(file_format=file_format, device="cpu")
        )
        assert result.written["p1"].name == f"p1_sct{ending}"
        volume = read_volume(result.written["p1"])
        assert grid_of(volume).matches(grid_of(read_volume(mr / "p1.nii.gz")), 1e-3)
        voxels.append(volume.numpy())
        if ending != ".nii.gz":
            assert "not for clinical use" in sitk.ReadImage(result.written["p1"]).GetMetaData("descrip")
    assert all(np.array_equal(voxels[0], other) for other in voxels[1:])
    with pytest.raises(InputError, match="nifti, mha, nrrd"):
        convert(run, [mr], tmp_path / "x", Options(file_format="png", device="cpu"))


def test_every_input_format_gives_the_same_sct_and_hash(run: Path, mr: Path, tmp_path: Path) -> None:
    volume = read_volume(mr / "p1.nii.gz")
    array, grid = volume.numpy()[0].astype(np.float32), grid_of(volume)
    results, hashes = [], set()
    for suffix in (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"):
        write_volume(tmp_path / f"in{suffix}", array, Grid(array.shape, grid.affine))
        out = tmp_path / f"of{suffix[1:]}"
        results.append(
            read_volume(convert(run, [tmp_path / f"in{suffix}"], out, Options(device="cpu")).written["in"]).numpy()
        )
        hashes.update(record(out)["cases"]["in"]["voxels_sha256"])
    assert len(hashes) == 1 and all(np.array_equal(results[0], other) for other in results[1:])


def test_resume_skips_what_is_finished_and_nothing_else(run: Path, mr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copy(mr / "p3.nii.gz", tmp_path / "p3.nii.gz")
    (mr / "p3.nii.gz").write_bytes(b"broken")
    first = convert(run, [mr], out, Options(device="cpu"))
    assert set(first.written) == {"p1", "p2"} and set(first.failed) == {"p3"}
    stamps = {case: file.stat().st_mtime_ns for case, file in first.written.items()}
    with pytest.raises(InputError, match="exist already"):
        convert(run, [mr], out, Options(device="cpu"))
    shutil.move(tmp_path / "p3.nii.gz", mr / "p3.nii.gz")
    second = convert(run, [mr], out, Options(resume=True, device="cpu"))
    assert set(second.written) == {"p3"} and set(second.skipped) == {"p1", "p2"} and not second.failed
    assert {case: file.stat().st_mtime_ns for case, file in first.written.items()} == stamps
    assert set(record(out)["cases"]) == {"p1", "p2", "p3"}
    # Other settings or another model finished nothing of this.
    with pytest.raises(InputError, match="another model or settings"):
        convert(run, [mr], out, Options(resume=True, ensemble=Ensemble(flips=True), device="cpu"))
    # An input that has changed since is told and not skipped.
    shutil.copy(mr / "p2.nii.gz", mr / "p1.nii.gz")
    third = convert(run, [mr], out, Options(resume=True, device="cpu"))
    assert "has changed since" in third.failed["p1"] and set(third.skipped) == {"p2", "p3"}
    # A result that was deleted is made again.
    first.written["p2"].unlink()
    assert set(convert(run, [mr / "p2.nii.gz"], out, Options(resume=True, device="cpu")).written) == {"p2"}
    with pytest.raises(InputError, match="Choose one"):
        convert(run, [mr], out, Options(resume=True, overwrite=True, device="cpu"))


@pytest.fixture
def other_run(run: Path, tmp_path: Path) -> Path:
    """A checkpoint with other weights."""
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    for weight in content["ema"]["gen_ab"].values():
        weight.neg_()
    torch.save(content, tmp_path / "other.pt")
    return tmp_path / "other.pt"


def test_resume_takes_no_file_of_another_model_or_case_for_its_own(
    run: Path, other_run: Path, mr: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(run, [mr / "p1.nii.gz"], out, Options(device="cpu"))
    convert(other_run, [mr / "p1.nii.gz"], out, Options(file_format="mha", device="cpu"))
    with pytest.raises(InputError, match="another model or settings"):
        convert(other_run, [mr / "p1.nii.gz"], out, Options(resume=True, device="cpu"))
    assert convert(run, [mr / "p1.nii.gz"], out, Options(resume=True, device="cpu")).skipped
    assert convert(other_run, [mr / "p1.nii.gz"], out, Options(file_format="mha", resume=True, device="cpu")).skipped
    # One file, written by one case and then by another.
    convert(run, [mr / "p1.nii.gz"], tmp_path / "x.mha", Options(device="cpu"))
    convert(run, [mr / "p2.nii.gz"], tmp_path / "x.mha", Options(overwrite=True, device="cpu"))
    with pytest.raises(InputError, match="exist already"):
        convert(run, [mr / "p1.nii.gz"], tmp_path / "x.mha", Options(resume=True, device="cpu"))


def test_results_of_another_model_keep_their_record_until_they_are_replaced(
    run: Path, other_run: Path, mr: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(run, [mr], out, Options(device="cpu"))
    first = record(out)
    convert(other_run, [mr / "p1.nii.gz"], out, Options(overwrite=True, device="cpu"))
    content = record(out)
    assert set(content["cases"]) == {"p1"} and content["model"] != first["model"]
    (earlier,) = content["earlier"]
    assert earlier == {key: first[key] for key in ("program", "model", "settings")} | {
        "cases": {case: first["cases"][case] for case in ("p2", "p3")}
    }
    convert(run, [mr], out, Options(overwrite=True, device="cpu"))
    assert set(record(out)["cases"]) == {"p1", "p2", "p3"} and "earlier" not in record(out)


def test_uncertainty_maps_lie_beside_the_sct(run: Path, mr: Path, tmp_path: Path) -> None:
    plain = convert(run, [mr / "p1.nii.gz"], tmp_path / "plain", Options(device="cpu"))
    result = convert(run, [mr / "p1.nii.gz"], tmp_path / "out", Options(uncertainty=True, device="cpu"))
    names = ("spread", "structure", "cycle", "combined")
    assert {p.name for p in (tmp_path / "out" / "uncertainty").iterdir()} == {f"p1_{name}.nii.gz" for name in names}
    sct = nib.load(result.written["p1"])
    # Air all around, two voxels away from the body: linear interpolation reaches one.
    regions, _ = ndimage.label(np.asarray(sct.dataobj) == -1024)
    around = ndimage.binary_erosion(regions == regions[0, 0, 0], iterations=2)
    assert 0.1 < around.mean() < 0.9
    for name in names:
        image = nib.load(tmp_path / "out" / "uncertainty" / f"p1_{name}.nii.gz")
        assert image.shape == sct.shape and np.array_equal(image.affine, sct.affine)
        values = image.get_fdata()
        assert np.isfinite(values).all() and values.min() >= 0 and values.max() > 0
        assert values[around].max() == 0
    # Asking for uncertainty does not change the result.
    assert np.array_equal(sct.dataobj, nib.load(plain.written["p1"]).dataobj)
    quality = result.quality["p1"]
    assert quality["members"] == 1 and 0 <= quality["share_above_threshold"] <= 1


def test_uncertainty_maps_are_those_of_the_sct_beside_them(
    run: Path, other_run: Path, mr: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(run, [mr / "p1.nii.gz"], out, Options(uncertainty=True, device="cpu"))
    # Without --overwrite none is replaced, though another format has another file for the sCT.
    maps = {path.name: path.read_bytes() for path in (out / "uncertainty").iterdir()}
    with pytest.raises(InputError, match=r"exist already.*\n  - \S*p1_spread\.nii\.gz"):
        convert(other_run, [mr / "p1.nii.gz"], out, Options(uncertainty=True, file_format="dicom", device="cpu"))
    assert {path.name: path.read_bytes() for path in (out / "uncertainty").iterdir()} == maps
    # A case that has lost one is not finished.
    (out / "uncertainty" / "p1_cycle.nii.gz").unlink()
    assert convert(run, [mr / "p1.nii.gz"], out, Options(uncertainty=True, resume=True, device="cpu")).written
    assert {path.name for path in (out / "uncertainty").iterdir()} == set(maps)
    # Those of a replaced sCT are of no use.
    convert(other_run, [mr / "p1.nii.gz"], out, Options(overwrite=True, device="cpu"))
    assert not list((out / "uncertainty").iterdir())


def test_case_ids_that_end_like_results_have_uncertainty_maps_of_their_own(run: Path, mr: Path, tmp_path: Path) -> None:
    shutil.move(mr / "p2.nii.gz", mr / "p1_smr.nii.gz")
    (mr / "p3.nii.gz").unlink()
    convert(run, [mr], tmp_path / "out", Options(uncertainty=True, device="cpu"))
    found = {path.name for path in (tmp_path / "out" / "uncertainty").iterdir()}
    assert {"p1_spread.nii.gz", "p1_smr_spread.nii.gz"} <= found and len(found) == 8


def test_an_ensemble_is_the_mean_of_its_members(run: Path, cohort: phantom.Cohort) -> None:
    def values(ensemble: Ensemble | None = None, times: int = 1) -> np.ndarray:
        translator = load_translator([run] * times, device="cpu", ensemble=ensemble)
        translator.window = replace(translator.window, bf16=False)
        source = translator.read(cohort.test_mr[0])
        return translator.predict(source).values

    planes = [values(Ensemble((plane,))) for plane in ("axial", "coronal", "sagittal")]  # type: ignore[arg-type]
    assert np.array_equal(values(), planes[0])
    together = values(Ensemble(("axial", "coronal", "sagittal")))
    np.testing.assert_allclose(together, np.mean(planes, axis=0), atol=1e-6)
    median = values(Ensemble(("axial", "coronal", "sagittal"), fuse="median"))
    np.testing.assert_allclose(median, np.median(planes, axis=0), atol=1e-6)
    np.testing.assert_allclose(values(times=2), planes[0], atol=1e-6)  # twice the same checkpoint


def test_an_old_checkpoint_says_that_its_cohort_is_unknown(run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    for domain in content["domains"].values():
        del domain["cohort"]
    torch.save(content, tmp_path / "old.pt")
    result = convert(tmp_path / "old.pt", [cohort.test_mr[0]], tmp_path / "out", Options(device="cpu"))
    (quality,) = result.quality.values()
    assert quality["cohort"].startswith("unknown") and quality["flags"] == []


def test_a_ct_given_as_mr_is_flagged(run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    result = convert(run, [cohort.test_ct[0]], tmp_path / "out", Options(device="cpu"))
    (quality,) = result.quality.values()
    assert "look like a CT" in quality["flags"][0]


def test_checkpoints_of_other_preparations_are_not_fused(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    content["domains"]["a"]["channels"][0]["preparation"]["spacing"] = (1.0, 1.0, 1.0)
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match="checkpoint 2"):
        load_translator([run, tmp_path / "other.pt"], device="cpu")


def test_an_ensemble_of_a_model_with_itself_is_refused(run: Path, mr: Path, tmp_path: Path) -> None:
    """It would agree with itself everywhere, and an uncertainty map of it would be 0."""
    for twice in (run, run / "checkpoint.pt"):
        with pytest.raises(InputError, match="given twice"):
            convert([run, twice], [mr], tmp_path / "out", Options(device="cpu"))
    assert not (tmp_path / "out").exists()


def test_processes_of_torchrun_share_the_cases(run: Path, mr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "medcyclegan", "convert", str(run), str(mr), "-o", str(out), "-d", "cpu", "--json"]
    written = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}
        done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, check=True)
        written.append(set(json.loads(done.stdout)["written"]))
        assert set(record(out)["cases"]) == set.union(*written)
    assert written == [{"p1", "p3"}, {"p2"}]
    assert [path.name for path in out.glob("*.json")] == ["run.json"]
    again = convert(run, [mr], out, Options(resume=True, device="cpu"))  # by one process, from the record of two
    assert set(again.skipped) == {"p1", "p2", "p3"}


def timeless(folder: Path) -> dict:
    """run.json without its times, and with the same paths for every folder."""
    text = (folder / "run.json").read_text()
    content = json.loads(re.sub(rf"{folder.parent}/\w+/(\w+_sct)", r"OUT/\1", text))
    assert content.pop("seconds") > 0 and all(case.pop("seconds") > 0 for case in content["cases"].values())
    return content


@pytest.mark.slow
def test_one_record_of_several_processes_whoever_dies(run: Path, mr: Path, tmp_path: Path) -> None:
    (mr / "p4.nii.gz").write_bytes(b"broken")  # for the second of two processes, which has p2, too
    (mr / "p5.nii.gz").write_bytes(b"broken")  # for the first one, which has p1 and p3
    command = [sys.executable, Path(__file__).parent / "processes.py", "share", run, tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])["codes"]
    assert codes == {"one": [0], "two": [0, 0], "killed": [-9, 0], "resumed": [0], "again": [0, 0, 0]}
    one = timeless(tmp_path / "one")
    assert set(one["cases"]) == {"p1", "p2", "p3"} and set(one["failed"]) == {"p4", "p5"}
    # Two that were at work at the same time, one that goes on after a death, and three.
    for folder in ("two", "killed", "again"):
        assert timeless(tmp_path / folder) == one, folder
        assert [path.name for path in (tmp_path / folder).glob("*.json")] == ["run.json"]
        for file in (tmp_path / "one").glob("*.nii.gz"):
            assert np.array_equal(*(nib.load(path).dataobj for path in (file, tmp_path / folder / file.name)))
    names = ("two-0", "two-1", "killed-1", "killed-")
    by = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    assert by["two-0"]["written"] == ["p1", "p3"] and by["two-1"]["written"] == by["killed-1"]["written"] == ["p2"]
    assert by["killed-"]["skipped"] == ["p1", "p2"] and by["killed-"]["written"] == ["p3"]


def test_processes_that_cannot_lock_their_record_are_refused_before_anything(
    run: Path, mr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"run\.json, and it cannot be locked .* Convert with one process"):
        convert(run, [mr], tmp_path / "out", Options(device="cpu"))
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    monkeypatch.delenv("WORLD_SIZE")
    assert convert(
        run, [mr / "p1.nii.gz"], tmp_path / "out", Options(device="cpu")
    ).written  # one process needs no locks


def test_a_single_file_has_its_record_beside_it(run: Path, mr: Path, tmp_path: Path) -> None:
    convert(run, [mr / "p1.nii.gz"], tmp_path / "x.nrrd", Options(device="cpu"))
    assert (tmp_path / "x.nrrd").exists() and set(record(tmp_path, "x.run.json")["cases"]) == {"p1"}


@pytest.mark.parametrize("file_format", ["nifti", "mha", "dicom"])
def test_a_case_that_cannot_be_written_does_not_stop_the_others(
    run: Path, mr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    move, code = Path.replace, errno.EIO

    def fail(path: Path, to: Path) -> Path:
        if Path(to).name.startswith("p2_sct"):
            raise OSError(code, os.strerror(code), str(to))
        return move(path, to)

    monkeypatch.setattr(Path, "replace", fail)
    out = tmp_path / "out"
    result = convert(run, [mr], out, Options(file_format=file_format, device="cpu"))
    assert set(result.written) == {"p1", "p3"} and "Input/output error" in result.failed["p2"]
    assert record(out)["failed"] == result.failed and set(record(out)["cases"]) == {"p1", "p3"}
    assert sorted(path.name.partition("_")[0] for path in out.iterdir()) == ["p1", "p3", "run.json"]
    # Nothing fits onto a full disk.
    code = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        convert(run, [mr], tmp_path / "full", Options(file_format=file_format, device="cpu"))
    assert set(record(tmp_path / "full")["cases"]) == {"p1"}


def test_a_case_that_does_not_fit_into_memory_does_not_stop_the_others(
    run: Path, mr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Translator.read

    def fail(translator: Translator, image: Any, body: Any = None) -> Source:
        if "p2" in image[0].meta["filename_or_obj"]:
            raise MemoryError
        return read(translator, image, body)

    monkeypatch.setattr(Translator, "read", fail)
    result = convert(run, [mr], tmp_path / "out", Options(device="cpu"))
    assert set(result.written) == {"p1", "p3"} and result.failed == {"p2": "there is not enough memory."}


def test_inputs_are_never_written_over(run: Path, mr: Path, tmp_path: Path) -> None:
    shutil.copy(mr / "p2.nii.gz", mr / "p1_sct.nii.gz")
    before = {path.name: path.read_bytes() for path in mr.iterdir()}
    with pytest.raises(InputError, match=r"are inputs themselves.*\n  - \S*p1_sct\.nii\.gz, from \S*p1\.nii\.gz$"):
        convert(run, [mr], mr, Options(overwrite=True, device="cpu"))
    with pytest.raises(InputError, match="are inputs themselves"):
        convert(run, [mr / "p1.nii.gz"], mr / "p1.nii.gz", Options(overwrite=True, device="cpu"))
    assert {path.name: path.read_bytes() for path in mr.iterdir()} == before
    # Its own results in the folder of its inputs are no new inputs.
    (mr / "p1_sct.nii.gz").unlink()
    convert(run, [mr], mr, Options(device="cpu"))
    with pytest.raises(InputError, match="are inputs themselves"):
        convert(run, [mr], mr, Options(resume=True, device="cpu"))


def test_what_cannot_be_read_or_written_is_refused_before_anything(
    run: Path, mr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"(?s)do not exist.*gone\.nii\.gz.*nowhere"):
        convert(run, [mr, tmp_path / "gone.nii.gz", tmp_path / "nowhere"], tmp_path / "out", Options(device="cpu"))
    with pytest.raises(InputError, match=r"sct\.png is a file of another kind"):
        convert(run, [mr / "p1.nii.gz"], tmp_path / "sct.png", Options(device="cpu"))
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.F_OK)  # to an administrator nothing is closed
    with pytest.raises(InputError, match=r"out cannot be written: .* is no folder that you may write"):
        convert(run, [mr], tmp_path / "out", Options(device="cpu"))
    assert {path.name for path in tmp_path.iterdir()} == {"mr"}
