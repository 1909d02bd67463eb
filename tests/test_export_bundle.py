"""Bundles are verified, run, evaluated and trained by MONAI's own commands, and give what this program gives."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from medcyclegan import factory, phantom
from medcyclegan.convert import Options, convert
from medcyclegan.errors import InputError
from medcyclegan.evaluation.evaluate import evaluate
from medcyclegan.export.formats import export_run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles compute in float32, so that convert has to here, whatever this processor can do."""
    monkeypatch.setattr(factory.translators, "bf16_is_safe", lambda device: False)


@pytest.fixture(scope="session")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "ab"
    export_run(run, folder)
    return folder


@pytest.fixture(scope="session")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MR head as it is, and another with its axes permuted, flipped and turned by 17 degrees.

    Of odd lengths: with an even one, the middle plane of an odd working grid lies halfway between two planes, and
    libraries differ in which of them is the nearest.
    """
    folder = tmp_path_factory.mktemp("exams")
    cohort = phantom.write_cohort(
        folder / "phantoms", seed=8, train_mr=0, train_ct=0, test=2, spacing_mm=(5.3, 5.3, 6.7), shape=(41, 51, 25)
    )
    straight, other = cohort.test_mr
    (folder / "mr").mkdir()
    (folder / "ct").mkdir()
    for domain, files in (("mr", cohort.test_mr), ("ct", cohort.test_ct)):
        shutil.copy(files[0], folder / domain / "straight.nii.gz")
        image = nib.load(files[1])
        angle = np.deg2rad(17)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        # New index (a, b, c) is old index (n - 1 - b, c, a).
        places = np.array([[0, -1, 0, image.shape[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
        array = np.ascontiguousarray(np.asarray(image.dataobj).transpose(2, 0, 1)[:, ::-1])
        nib.save(nib.Nifti1Image(array, turn @ image.affine @ places), folder / domain / "oblique.nii.gz")
    assert straight != other
    return folder


@pytest.fixture(scope="session")
def volumes(cohort: phantom.Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training volumes as `train.json` takes them."""
    folder = tmp_path_factory.mktemp("volumes")
    shutil.copytree(cohort.train_mr[0].parent, folder / "a")
    shutil.copytree(cohort.train_ct[0].parent, folder / "b")
    return folder


def run_config(bundle: Path, name: str, **override: Any) -> None:
    """What `python -m monai.bundle run` does."""
    monai.bundle.run(config_file=str(bundle / "configs" / f"{name}.json"), bundle_root=str(bundle), **override)


def difference(one: Path, other: Path) -> np.ndarray:
    first, second = nib.load(one), nib.load(other)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
    assert first.get_data_dtype() == second.get_data_dtype()
    return np.abs(np.asarray(first.dataobj, dtype=float) - np.asarray(second.dataobj, dtype=float))


def test_every_property_of_the_specification_is_there(bundle: Path, exams: Path, volumes: Path) -> None:
    for name, kind, given in (
        ("inference", "infer", {"dataset_dir": str(exams / "mr")}),
        ("evaluate", "infer", {"dataset_dir": str(exams / "mr"), "label_dir": str(exams / "ct")}),
        ("train", "train", {"dataset_dir": str(volumes)}),
        ("multi_gpu_train", "train", {"dataset_dir": str(volumes), "device": "cpu"}),
    ):
        workflow = ConfigWorkflow(
            config_file=str(bundle / "configs" / f"{name}.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            workflow_type=kind,
            bundle_root=str(bundle),
            **given,
        )
        workflow.initialize()
        assert not workflow.check_properties()
    assert (bundle / "LICENSE").is_file() and (bundle / "docs" / "README.md").is_file()
    torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.export.load(bundle / "models" / "model.pt2")


def test_metadata_is_verified_and_mistakes_are_found(bundle: Path, tmp_path: Path) -> None:
    schema = str(bundle / "configs" / "schema.json")
    monai.bundle.verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=schema)
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    image, pred = content["network_data_format"]["inputs"]["image"], content["network_data_format"]["outputs"]["pred"]
    assert (image["modality"], image["format"]) == ("MR", "magnitude")
    assert (pred["modality"], pred["format"]) == ("CT", "hounsfield")
    assert content["eval_metrics"]["mae"] > 0  # of the run's own validation
    del content["authors"]
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="authors"):
        monai.bundle.verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=schema)


def test_the_network_takes_and_gives_what_the_metadata_say(bundle: Path) -> None:
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        n=2,
        p=3,
    )


def test_inference_is_convert(bundle: Path, run: Path, exams: Path, tmp_path: Path) -> None:
    run_config(bundle, "inference", dataset_dir=str(exams / "mr"), output_dir=str(tmp_path / "bundle"))
    written = convert(run, [exams / "mr"], tmp_path / "convert", Options(device="cpu")).written
    assert set(written) == {"straight", "oblique"}
    for path in written.values():
        assert np.percentile(difference(path, tmp_path / "bundle" / path.name), 99.9) <= 1
        assert np.asarray(nib.load(path).dataobj).std() > 100  # HU: not the same because nothing is there


def test_evaluate_gives_the_numbers_of_evaluate(bundle: Path, run: Path, exams: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(exams / "mr"), "label_dir": str(exams / "ct"), "output_dir": str(tmp_path / "out")}
    run_config(bundle, "evaluate", **given)
    with (tmp_path / "out" / "metrics.csv").open() as stream:
        found = {name: float(value) for name, value in csv.reader(stream)}
    convert(run, [exams / "mr"], tmp_path / "sct", Options(device="cpu"))
    metrics = evaluate(tmp_path / "sct", exams / "ct").summary["metrics"]
    assert set(found) == {"mae", "psnr", "ssim", "ms_ssim", "me"}
    for name, value in found.items():
        assert value == pytest.approx(metrics[name]["mean"], rel=1e-4, abs=1e-4), name


def test_train_makes_a_run(bundle: Path, volumes: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "run")}
    run_config(bundle, "train", steps=3, **given)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    with pytest.raises(RuntimeError):  # a folder that holds a run is left alone
        run_config(bundle, "train", steps=3, **given)


def test_two_processes_train_it_together(bundle: Path, volumes: Path, tmp_path: Path) -> None:
    shutil.copytree(volumes, tmp_path / "volumes")
    command = [sys.executable, Path(__file__).parent / "processes.py", "bundle", bundle, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=bundle)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["codes"] == [0, 0], found["logs"]
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (content["step"], content["processes"], content["batch"]) == (2, 2, 2)


def test_nothing_of_a_checkpoint_is_evaluated_in_a_bundle(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    left = tmp_path / "was_run"
    content["domains"]["a"]["name"] = f"$open('{left}', 'w')#"
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"cannot become a bundle:\n(.|\n)*which MONAI would evaluate"):
        export_run(tmp_path / "evil.pt", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists() and not left.exists()


def test_a_bundle_names_what_it_needs(bundle: Path) -> None:
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert list(content["required_packages_version"]) == ["medcyclegan"]


def test_the_other_direction_and_no_paths_of_the_user(run: Path, exams: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "ba", direction="ba")
    assert not (tmp_path / "ba" / "configs" / "evaluate.json").exists()
    text = "".join(p.read_text() for p in (tmp_path / "ba").rglob("*") if p.suffix in (".json", ".yaml", ".md"))
    assert str(run) not in text and "prepared" not in text
    given = {"dataset_dir": str(exams / "ct"), "output_dir": str(tmp_path / "out")}
    run_config(tmp_path / "ba", "inference", **given)
    for path in convert(
        run, [exams / "ct"], tmp_path / "convert", Options(direction="ba", device="cpu")
    ).written.values():
        apart = difference(path, tmp_path / "out" / path.name)
        assert np.percentile(apart, 99.9) <= 1e-3 * np.ptp(np.asarray(nib.load(path).dataobj))


def test_bad_input(run: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(bundle.rglob("*"))
    with pytest.raises(InputError, match="exists already"):
        export_run(run, bundle)
    assert sorted(bundle.rglob("*")) == before
    with pytest.raises(InputError, match="no run or checkpoint"):
        export_run(tmp_path / "nothing", tmp_path / "new")
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    for name in ("optimizers", "schedulers", "networks"):
        del content[name]
    content["ema"].pop("gen_ba")
    torch.save(content, tmp_path / "imported.pt")
    with pytest.raises(InputError, match="no generator for the direction 'ba'"):
        export_run(tmp_path / "imported.pt", tmp_path / "new", direction="both")
    assert not (tmp_path / "new").exists()
    export_run(tmp_path / "imported.pt", tmp_path / "imported")
    assert "Imported weights" in (tmp_path / "imported" / "docs" / "README.md").read_text()
    monkeypatch.delattr("monai.bundle.verify_net_in_out")
    with pytest.raises(InputError, match=r"verify_net_in_out, which the installed monai [\d.]+ does not have"):
        export_run(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_commands_themselves(bundle: Path, run: Path, exams: Path, tmp_path: Path) -> None:
    """As a user types them, from the bundle's folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    common = ["--meta_file", "configs/metadata.json"]
    for words in (
        ["verify_metadata", *common, "--filepath", "configs/schema.json"],
        ["run", "--config_file", "configs/inference.json", "--dataset_dir", exams / "mr", "--output_dir", tmp_path],
    ):
        command = [sys.executable, "-m", "monai.bundle", *map(str, words)]
        done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    for path in convert(run, [exams / "mr"], tmp_path / "convert", Options(device="cpu")).written.values():
        assert np.percentile(difference(path, tmp_path / path.name), 99.9) <= 1
