"""The command line as a user meets it: data in every form, and every mistake with its message and exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from medcyclegan import __version__, cli, phantom
from medcyclegan.data.prepared import open_prepared

TINY = [
    "--set=model.generator={_target_: resnet, filters: 4, blocks: 1}",
    "--set=model.discriminator.filters=4",
    "--set=model.discriminator.layers=1",
    "--set=patches.size=[32,32]",
    "--set=training.log_every=1",
]


def call(*arguments: object, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "medcyclegan", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_data_are_recognized_and_plans_are_trained_as_they_say(
    cohort: phantom.Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layout, a table, a datalist and a prepared folder are the same data; the command that `plan` prints works."""

    def run(*arguments: str) -> str:
        return CliRunner().invoke(cli.app, arguments, catch_exceptions=False).stdout

    monkeypatch.chdir(tmp_path)
    shutil.copytree(cohort.train_mr[0].parent, "heads/mr")
    shutil.copytree(cohort.train_ct[0].parent, "heads/ct")
    rows = [f"{file},{domain}" for domain, files in (("a", cohort.train_mr), ("b", cohort.train_ct)) for file in files]
    Path("heads.csv").write_text("\n".join(["image,domain", *rows]))
    Path("coarse.yml").write_text("preparation: {spacing: [8, 8, 8]}")
    run("datalist", "heads", "-o", "heads.json")
    found = set()
    for data in ("heads", "heads.csv", "heads.json"):
        printed = run("prepare", data, "coarse.yml", "-o", f"of {data}", "--json", "--workers", "1")
        assert json.loads(printed)["cases"]["a"] == 2
        found.add(open_prepared(Path(f"of {data}")).fingerprint())
    assert len(found) == 1
    small = [*TINY, "--set=training.steps=1", "-d", "cpu"]
    assert "1 steps" in run("train", "coarse.yml", "of heads", *small, "-o", "run")
    command = run("plan", "heads", "-o", "plan.yaml", "--gpu-memory", "24").split("`")[1].split()
    assert command == ["medcyclegan", "train", "plan.yaml", "-o", "RUN"]
    assert f"source: {tmp_path / 'heads'}" in Path("plan.yaml").read_text()
    assert "1 steps" in run(*command[1:], *small, "--set=preparation.spacing=[8,8,8]")


NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, **_):
        raise RuntimeError('of my own')
"""


def test_whole_tracebacks_are_shown_where_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_parts.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    verb = ["benchmark", "train", "--set=model.generator={_target_: my_parts.Net}", "--allow", "my_parts", "-d", "cpu"]
    for arguments, environment, shown in (
        (verb, "", False),
        (["--debug", *verb], "", True),
        ([*verb, "--debug"], "", True),
        (verb, "1", True),
        (verb, "0", False),
    ):
        monkeypatch.setenv("MEDCYCLEGAN_DEBUG", environment)
        monkeypatch.setattr(sys, "argv", ["medcyclegan", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert error.splitlines()[-1] == "error: generator 'my_parts.Net' cannot be built: RuntimeError: of my own"
        assert ("Traceback" in error, "my_parts.py" in error) == (shown, shown)


def test_interrupt_saves_and_says_how_to_resume(cohort: phantom.Cohort, tmp_path: Path) -> None:
    mr, ct, run = cohort.train_mr[0].parent, cohort.train_ct[0].parent, tmp_path / "run"
    command = ["train", "--a", mr, "--b", ct, *TINY, "--set", "training.steps=100000", "-o", run, "-d", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "medcyclegan", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    assert f"medcyclegan train --resume {run}" in error
    assert (run / "checkpoint.pt").exists()


@pytest.mark.parametrize("verb", ["prepare", "evaluate"])
def test_an_interrupt_while_processes_work_is_one_message(verb: str, cohort: phantom.Cohort, tmp_path: Path) -> None:
    mr, ct = cohort.train_mr[0].parent, cohort.train_ct[0].parent
    given = {"prepare": ["--a", mr, "--b", ct], "evaluate": [ct, ct]}[verb]
    command = [sys.executable, "-m", "medcyclegan", verb, *given, "--workers", "2", "-o", tmp_path / "out"]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children()
        if any("multiprocessing.spawn" in " ".join(child.cmdline()) for child in children):
            break
        time.sleep(0.05)
    time.sleep(0.5)  # they load their libraries
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in output and output.splitlines()[-1] == "error: interrupted."
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").rglob("*.*")]


HEAVY = {
    "PIL", "ignite", "einops", "isal", "jinja2", "matplotlib", "monai", "nibabel", "numpy", "onnx", "pydicom", "scipy",
    "SimpleITK", "skimage", "tensorboard", "torch",
}  # fmt: skip
TELL = """
import json, sys
before = set(sys.modules)
try:
    from medcyclegan.cli import main
    main()
finally:
    print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["train", "--help"], 0), (["train", "bad.yaml", "-o", "run"], 2)]
)
def test_help_and_config_errors_import_nothing_heavy(arguments: list[str], code: int, tmp_path: Path) -> None:
    """They are quick because no library of arrays, images or networks is imported, on any processor."""
    (tmp_path / "bad.yaml").write_text("trainig: {}\nmodel: {generator: {_target_: resnet, block: 9}}\n")
    result = subprocess.run(
        [sys.executable, "-c", TELL, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == code, result.stderr
    if code:
        assert "'training'" in result.stderr and "'blocks'" in result.stderr
    imported = json.loads(result.stdout.splitlines()[-1])
    assert not {name.partition(".")[0] for name in imported} & HEAVY
    assert "typer" in imported and len(imported) < 500  # 220 here; torch alone has more than 1,000


def test_version_and_help() -> None:
    assert call("--version").stdout.strip() == f"medcyclegan {__version__}"
    output = call("--help").stdout
    assert all(verb in output for verb in ("demo", "prepare", "train", "convert", "evaluate"))


@pytest.fixture
def folders(cohort: phantom.Cohort, tmp_path: Path) -> Path:
    """A place with mr/, ct/, an empty folder and damaged files."""
    shutil.copytree(cohort.train_mr[0].parent, tmp_path / "mr")
    shutil.copytree(cohort.train_ct[0].parent, tmp_path / "ct")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    whole = cohort.train_mr[0].read_bytes()
    (tmp_path / "broken/cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.docx").touch()
    (tmp_path / "wrong_key.yaml").write_text("training: {step: 10}")
    (tmp_path / "wrong_type.yaml").write_text("training: {steps: many}")
    (tmp_path / "foreign.pt").write_bytes(b"PK nothing of ours")
    (tmp_path / "done").mkdir()
    (tmp_path / "done/prepared.json").touch()
    (tmp_path / "list.json").touch()
    return tmp_path


EVERY_DATA = ["--a DIR --b DIR", "a prepared folder", "a datalist", "layout bids", "layout synthrad", "layout csv"]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ("prepare --a nowhere --b ct -o p", ["nowhere", "does not exist"]),
        ("prepare --a empty --b ct -o p", ["empty", ".nii.gz"]),
        ("prepare --a broken --b ct -o p", ["cut.nii.gz", "no volume of domain a"]),
        ("prepare --a ct --b mr -o p", ["swapped"]),
        ("prepare --a mr --b ct -o full", ["full", "thesis.docx"]),
        ("prepare --a mr -o p", ["a and b are both needed"]),
        (
            "prepare --a mr --b ct --set domains.b.name=PET --set domains.b.modality=PET -o p",
            ["modality", "'MR' or 'CT'", "PET"],
        ),
        ("train --a mr --b ct -o full", ["full", "not empty"]),
        ("train wrong_key.yaml -o run", ["training.step", "Did you mean 'steps'?"]),
        ("train wrong_type.yaml -o run", ["training.steps", "whole number", "many"]),
        ("train nowhere.yaml -o run", ["nowhere.yaml"]),
        ("train -o run", ["names no data"]),
        ("train --a mr --b ct", ["--output"]),
        ("train mr ct -o run", ["DATA is one path, got mr, ct", "--a DIR --b DIR"]),
        ("train mr -o run", ["mr is no data", "fits no layout; it holds mr_001", *EVERY_DATA]),
        ("prepare full/thesis.docx -o p", ["thesis.docx is no data", "file of another kind", *EVERY_DATA]),
        ("plan nowhere.json", ["nowhere.json is no data", "does not exist", *EVERY_DATA]),
        ("datalist list.json -o new.json", ["layout is needed", "list.json, which is a datalist"]),
        ("prepare wrong_key.yaml wrong_type.yaml -o p", ["an experiment is one YAML file"]),
        *(
            (f"{verb} done", ["volumes themselves", "done is a prepared folder"])
            for verb in ("plan", "inspect", "prepare -o p")
        ),
        ("train done --fold 1 -o run", ["done is a prepared folder", "fold is for a datalist"]),
        ("train list.json --layout bids -o run", ["list.json is a datalist", "layout is for a folder or table"]),
        ("train --a mr --b ct --patient (.*) -o run", ["patient belong to source"]),
        ("prepare done --a mr --b ct -o p", ["only one of: source; the folders a and b"]),
        ("benchmark train done", ["benchmark train takes an experiment; leave out"]),
        ("train --a mr --b ct -o run -d tpu", ["tpu", "auto, cpu, cuda"]),
        ("train --resume full", ["full", "checkpoint.pt"]),
        ("train --resume full --output other", ["--resume"]),
        ("convert foreign.pt mr -o out", ["foreign.pt", "not a medcyclegan checkpoint"]),
        ("convert nowhere mr -o out", ["nowhere", "no run or checkpoint"]),
        ("convert nowhere mr -o out --planes axial,front", ["axial,front", "coronal"]),
        ("convert nowhere mr -o out --fuse sum", ["mean or median", "sum"]),
        ("convert nowhere mr -o out --norm-statistics batch", ["window, neighbors, volume", "batch"]),
        ("convert nowhere mr -o out --checkpoint newest", ["'last' or 'best'", "newest"]),
        ("evaluate mr ct -o scores", ["mr_001", "ct_001"]),
        ("evaluate mr mr -o full", ["full"]),
        ("evaluate mr mr -o scores --protocol synthrad2024", ["synthrad2024", "Did you mean"]),
    ],
)
def test_mistakes_have_their_own_message(
    folders: Path,
    arguments: str,
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folders)
    monkeypatch.setattr(sys, "argv", ["medcyclegan", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in error
    assert "error: " in error
    for message in messages:
        assert message in error


def test_a_failed_case_is_listed_last_and_the_others_are_done(run: Path, folders: Path) -> None:
    shutil.copy(folders / "broken/cut.nii.gz", folders / "mr")
    result = call("convert", run, folders / "mr", "-o", folders / "out", "-d", "cpu", code=1)
    assert sorted(path.name for path in (folders / "out").iterdir()) == [
        "mr_001_sct.nii.gz",
        "mr_002_sct.nii.gz",
        "run.json",
    ]
    assert result.stderr.strip().splitlines()[-1].strip().startswith("cut: ")
    assert "1 failed:" in result.stderr


def test_existing_results_are_kept_unless_told(run: Path, folders: Path) -> None:
    call("convert", run, folders / "mr", "-o", folders / "out", "-d", "cpu")
    error = call("convert", run, folders / "mr", "-o", folders / "out", "-d", "cpu", code=2).stderr
    assert "exist already" in error and "mr_001_sct.nii.gz" in error
    call("convert", run, folders / "mr", "-o", folders / "out", "-d", "cpu", "--overwrite")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left(folders: Path) -> None:
    """A file system without space: every write to it fails as on a full disk."""
    code = (
        "import errno, sys; import medcyclegan.data.prepared as p\n"
        "def full(*a, **k): open('/dev/full', 'wb', buffering=0).write(b'x')\n"
        "p.np.save = full\n"
        "sys.argv = ['medcyclegan', 'prepare', '--a', 'mr', '--b', 'ct', '-o', 'p', '--workers', '1']\n"
        "from medcyclegan.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folders)
    assert result.returncode == 1, result.stderr
    assert "no space is left" in result.stderr and "Traceback" not in result.stderr
    assert not [path for path in (folders / "p").rglob("*") if path.name.startswith(".partial")]
