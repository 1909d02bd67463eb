"""What a training keeps and goes on from: pieces of a batch, older checkpoints, changed experiments, full disks."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from ignite.engine import Events
from processes import InFloat64
from test_training import StopAt, differences
from torch import Tensor

from medcyclegan import config, factory
from medcyclegan.config import Experiment
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.training.checkpoint import CheckpointHandler, load_checkpoint, older_checkpoints


@pytest.fixture(scope="module")
def half(prepared: PreparedCohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, stopped after 2 of its 4 steps."""
    experiment = config.parse({**TINY, "data": {"source": str(prepared.folder)}}, "the test")
    return factory.train(experiment, tmp_path_factory.mktemp("half") / "run", device="cpu", handlers=[StopAt(2)]).run


@pytest.fixture
def stopped(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "run"))


def changed(experiment: Experiment, **sections: Any) -> Experiment:
    content = experiment.model_dump(mode="json")
    for name, values in sections.items():
        content[name] = content[name] | values
    return config.parse(content, "the test")


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    pairs = [(value, b[name][key]) for name, state in a.items() for key, value in state.items()]
    return max(float((x - y).abs().max()) for x, y in pairs if isinstance(x, Tensor))


def apart_in_weights(a: Path, b: Path) -> float:
    return largest_difference(*(load_checkpoint(run)["networks"] for run in (a, b)))


def test_pieces_of_a_batch_equal_the_whole_batch(experiment: Experiment, tmp_path: Path) -> None:
    """In float64, see `InFloat64`: which orders of a sum a processor takes in float32 is its own affair."""
    settings = {"whole": {"batch_size": 4}, "pieces": {"batch_size": 1, "accumulate": 4}, "one": {"batch_size": 1}}
    torch.set_default_dtype(torch.float64)
    try:
        whole, pieces, one = (
            load_checkpoint(
                factory.train(
                    changed(experiment, training=training), tmp_path / name, device="cpu", handlers=[InFloat64()]
                ).run
            )
            for name, training in settings.items()
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert largest_difference(whole["networks"], pieces["networks"]) < 1e-10
    # The pool saw the same fakes in the same order.
    for domain in ("a", "b"):
        x, y = (content["objective"]["pools"][domain] for content in (whole, pieces))
        assert torch.equal(x["random"], y["random"])
        assert all(torch.allclose(*images, rtol=0, atol=1e-10) for images in zip(x["images"], y["images"], strict=True))
    # And one piece is something else, so that the above says anything.
    assert largest_difference(whole["networks"], one["networks"]) > 1e-4


def test_the_last_checkpoints_are_kept(experiment: Experiment, tmp_path: Path) -> None:
    every = changed(experiment, training={"steps": 4, "checkpoint_every": 1, "keep_checkpoints": 3})
    run = factory.train(every, tmp_path / "run", device="cpu").run
    kept = list(older_checkpoints(run).values())
    assert [path.name for path in kept] == ["checkpoint-0000003.pt", "checkpoint-0000002.pt"]
    assert [load_checkpoint(path)["step"] for path in (run, *kept)] == [4, 3, 2]
    # Going back does the steps again, with the same result, and forgets what was later.
    whole = load_checkpoint(run)
    factory.resume(kept[1], device="cpu", handlers=[StopAt(3)])
    assert load_checkpoint(run)["step"] == 3
    assert [path.name for path in older_checkpoints(run).values()] == ["checkpoint-0000002.pt"]
    factory.resume(run, device="cpu")
    assert differences(load_checkpoint(run), whole) == []


def test_the_best_is_kept_beside_the_newest_and_remembered(experiment: Experiment, tmp_path: Path) -> None:
    class Best:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), self)

        def __call__(self, engine: Any) -> None:
            engine.best = {"step": 2, "score": 7.5}
            CheckpointHandler(tmp_path / "run" / "checkpoint.pt", {"header": 1}, every=1).save_best(engine)

    factory.train(experiment, tmp_path / "run", device="cpu", handlers=[Best(), StopAt(3)])
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert best["step"] == 2 and best["header"] == 1
    factory.resume(tmp_path / "run", device="cpu")
    assert load_checkpoint(tmp_path / "run")["best"] == {"step": 2, "score": 7.5}


@pytest.mark.parametrize("damage", ["one bit", "cut off"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_named(run: Path, tmp_path: Path, damage: str) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    (older,) = older_checkpoints(run).values()
    content = bytearray((run / "checkpoint.pt").read_bytes())
    with zipfile.ZipFile(run / "checkpoint.pt") as archive:  # between its parts there is filling that nobody reads
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    middle = largest.header_offset + 1000 + largest.file_size // 2
    content[middle] ^= 1
    (run / "checkpoint.pt").write_bytes(content if damage == "one bit" else content[:middle])
    for attempt in (factory.resume, factory.load_translator):
        with pytest.raises(InputError, match=rf"checkpoint.pt is not .*damaged.*{older.name}, is whole"):
            attempt(run, device="cpu")
    assert factory.resume(older, device="cpu").step == 4
    assert load_checkpoint(run)["step"] == 4


def test_stopped_before_the_first_checkpoint_it_begins_again(experiment: Experiment, run: Path, tmp_path: Path) -> None:
    class Crash:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED(once=2), self)

        def __call__(self, engine: Any) -> None:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        factory.train(experiment, tmp_path / "run", device="cpu", handlers=[Crash()])
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    with pytest.raises(InputError, match="--resume"):
        factory.train(experiment, tmp_path / "run", device="cpu")
    factory.resume(tmp_path / "run", device="cpu")
    assert apart_in_weights(tmp_path / "run", run) < 1e-6


class TestAChangedExperiment:
    def test_is_refused_key_by_key_unless_it_is_wanted(self, stopped: Path) -> None:
        new = ["training.steps=3", "training.learning_rate=0.001", "training.log_every=1"]
        with pytest.raises(InputError) as raised:
            factory.resume(stopped, new=factory.NewSettings(overrides=new), device="cpu")
        for line in ("training.steps: 4 -> 3", "training.learning_rate: 0.0002 -> 0.001", "--allow-changes"):
            assert line in str(raised.value)
        assert "log_every" not in str(raised.value)
        assert load_checkpoint(stopped)["step"] == 2
        with pytest.warns(UserWarning, match=r"goes on from step 2 with training\.steps: 4 -> 3"):
            assert factory.resume(stopped, new=factory.NewSettings(overrides=new, allowed=True), device="cpu").step == 3
        content = load_checkpoint(stopped)
        assert content["experiment"]["training"]["learning_rate"] == 0.001
        assert {"step": 2, "key": "training.steps", "old": 4, "new": 3} in content["changes"]
        assert yaml.safe_load((stopped / "config.yaml").read_text())["training"]["steps"] == 3

    def test_a_new_learning_rate_is_used(self, stopped: Path, prepared: PreparedCohort) -> None:
        """After 2 of 4 steps, half of them at a constant rate, the third is at the full one and the fourth at half."""
        rates: list[float] = []

        class Rates:
            def attach(self, engine: Any) -> None:
                engine.add_event_handler(Events.ITERATION_STARTED, self)

            def __call__(self, engine: Any) -> None:
                rates.extend(group["lr"] for o in engine.optimizers.values() for group in o.param_groups)

        new = ["training.learning_rate=0.001"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            factory.resume(
                stopped, new=factory.NewSettings(overrides=new, allowed=True), device="cpu", handlers=[Rates()]
            )
        assert rates == pytest.approx([0.001, 0.001, 0.0005, 0.0005])

    @pytest.mark.parametrize(
        ("new", "line"),
        [
            ("model.generator.filters=8", "model.generator.filters: 4 -> 8"),
            ("seed=5", "seed: 0 -> 5"),
            ("objective.cycle_weight=5", "objective.cycle_weight: 10.0 -> 5"),
            ("preparation.spacing=[1,1,1]", "preparation.spacing: .* -> .1.0, 1.0, 1.0."),
            ("losses.adversarial._target_=hinge", "losses.adversarial._target_: lsgan -> hinge"),
        ],
    )
    def test_of_another_kind_is_another_training(self, stopped: Path, new: str, line: str) -> None:
        with pytest.raises(InputError, match=rf"(?s)train a new run.*{line}"):
            factory.resume(stopped, new=factory.NewSettings(overrides=[new], allowed=True), device="cpu")

    def test_the_same_file_is_no_change_and_another_is(
        self, cohort: Any, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file names folders and leaves the spacing open; the run has them prepared and a spacing of its own."""
        mr, ct = cohort.train_mr[0].parent, cohort.train_ct[0].parent
        content = experiment.model_dump(mode="json") | {"data": {"a": str(mr), "b": str(ct)}}
        del content["preparation"]
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(content))
        run = tmp_path / "run"
        factory.train(config.load(file), run, device="cpu", handlers=[StopAt(2)])
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert (
            factory.resume(run, new=factory.NewSettings(config_file=file), device="cpu", handlers=[StopAt(3)]).step == 3
        )
        assert (
            factory.resume(
                run, new=factory.NewSettings(config_file=run / "config.yaml"), device="cpu", handlers=[StopAt(4)]
            ).step
            == 4
        )
        content["data"]["a"] = str(ct.parent)
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(InputError, match=r"(?s)train a new run.*data\.a: "):
            factory.resume(run, new=factory.NewSettings(config_file=file, allowed=True), device="cpu")

    def test_fewer_steps_than_done_and_other_volumes_are_refused(
        self, stopped: Path, prepared: PreparedCohort, cohort: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="has done 2 steps already"):
            factory.resume(stopped, new=factory.NewSettings(overrides=["training.steps=1"], allowed=True), device="cpu")
        data = {"a": str(cohort.test_mr[0].parent), "b": str(cohort.test_ct[0].parent)}
        spacing = {"spacing": list(prepared.spacing)}
        other = factory.prepare(config.parse({"data": data, "preparation": spacing}, "the test"), tmp_path / "other")
        with pytest.raises(InputError, match="does not hold the volumes"):
            factory.resume(
                stopped,
                new=factory.NewSettings(overrides=[f"data.source={other.folder}"], allowed=True),
                device="cpu",
            )

    def test_a_moved_cohort_changes_nothing(
        self, stopped: Path, prepared: PreparedCohort, run: Path, tmp_path: Path
    ) -> None:
        moved = ["data.source=" + str(shutil.copytree(prepared.folder, tmp_path / "moved"))]
        with pytest.warns(UserWarning, match=r"data\.source: .* -> .*moved"):
            factory.resume(
                stopped, new=factory.NewSettings(overrides=moved, allowed=True), device="cpu", handlers=[StopAt(3)]
            )
        assert factory.resume(stopped, new=factory.NewSettings(overrides=moved), device="cpu").step == 4
        assert apart_in_weights(stopped, run) < 1e-6

    @pytest.mark.parametrize("where", ["within", "beside", "far"])
    def test_a_run_that_was_moved_finds_its_data_or_says_how_to_name_them(
        self, where: str, stopped: Path, prepared: PreparedCohort, tmp_path: Path
    ) -> None:
        old, new = tmp_path / "old", tmp_path / "new"
        run = shutil.copytree(stopped, new / "runs" / "renamed")
        data = {"within": run / "prepared", "beside": new / "data" / "set", "far": tmp_path / "far"}[where]
        shutil.copytree(prepared.folder, data)
        content = load_checkpoint(run)
        lay = {"within": old / "runs" / "tiny" / "prepared", "beside": old / "data" / "set", "far": old / "x"}[where]
        for part in ("experiment", "given"):
            content[part]["data"]["source"] = str(lay)
        torch.save(content, run / "checkpoint.pt")
        strangers = new / "runs" / lay.name  # nearer to the run, and of other cases
        if where == "beside":
            shutil.copytree(prepared.folder, strangers)
            for case in (strangers / "a").iterdir():
                stored = json.loads((case / "case.json").read_text())
                stored["key"]["content"]["image"] = "0"
                (case / "case.json").write_text(json.dumps(stored))
        if where == "far":
            with pytest.raises(InputError, match=r"are not at .*old/x any more\. Say .* --set data\.source=FOLDER"):
                factory.resume(run, device="cpu")
            (run / "x").mkdir()
            (run / "x" / "prepared.json").write_text("yesterday")  # and the reason why it is not taken is told
            with pytest.raises(InputError, match=r"(?s)any more; near the run there is:\n  - .*renamed/x: .*JSON"):
                factory.resume(run, device="cpu")
        overrides = [f"data.source={data}"] if where == "far" else []
        with pytest.warns(UserWarning, match=r"goes on from step 2 with data\.source: .*old.* -> "):
            factory.resume(run, new=factory.NewSettings(overrides=overrides), device="cpu", handlers=[StopAt(3)])
        assert factory.resume(run, device="cpu").step == 4
        assert yaml.safe_load((run / "config.yaml").read_text())["data"]["source"] == str(data.resolve())


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file may become larger, as on a disk that is full by then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_training_and_leaves_the_checkpoint_before(stopped: Path, run: Path) -> None:
    before = (stopped / "checkpoint.pt").read_bytes()
    with (
        file_size_limit(len(before) // 2),
        pytest.raises(OSError, match=r"step 4 could not be saved .*checkpoint.pt is still whole, of step 2.*--resume"),
    ):
        factory.resume(stopped, device="cpu")
    assert load_checkpoint(stopped)["step"] == 2
    assert (stopped / "checkpoint.pt").read_bytes() == before
    assert not list(stopped.glob(".partial-*"))
    factory.resume(stopped, device="cpu")
    assert apart_in_weights(stopped, run) < 1e-6


def test_two_trainings_of_one_run_are_kept_apart(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory.runs, "LEFTOVERS_S", 0.0)
    folder = os.open(stopped, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is training"):
            factory.resume(stopped, device="cpu")
    finally:
        os.close(folder)
    assert factory.resume(stopped, device="cpu").step == 4


def test_a_second_training_into_a_new_folder_is_refused_before_it_looks(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory.runs, "LEFTOVERS_S", 0.0)
    new, refused = tmp_path / "run", []

    class Second:
        """Begins in a process of its own, as far as the lock can tell, when the first has seen that all is new."""

        def attach(self, engine: Any) -> None:
            monkeypatch.setattr(factory.runs, "_held", set())
            with pytest.raises(InputError, match="another process is training") as caught:
                factory.train(experiment, new, device="cpu")
            refused.append(str(caught.value))
            with pytest.raises(InputError, match="another process is training"):
                factory.resume(new, device="cpu")

    assert factory.train(experiment, new, device="cpu", handlers=[Second(), StopAt(1)]).step == 1
    assert len(refused) == 1
    # What is refused for another reason leaves no folder, and a folder of somebody else stays as it is.
    impossible = changed(experiment, patches={"size": [32, 32], "plane": "axial", "neighbors": 1})
    impossible = changed(impossible, data={"source": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="no data that is known: it does not exist"):
        factory.train(impossible, tmp_path / "other", device="cpu")
    assert not (tmp_path / "other").exists()
    with factory.alone_in(new), factory.alone_in(new):
        pass


def test_batches_and_patches_out_of_proportion_are_refused_before_training(
    experiment: Experiment, tmp_path: Path
) -> None:
    greedy = changed(experiment, training={"batch_size": 100, "accumulate": 2})
    with pytest.raises(InputError, match=r"a step takes 200 patches of a, but its 2 volumes have only \d+ slices"):
        factory.train(greedy, tmp_path / "run", device="cpu")
    # The heads have at most 36 x 44 voxels in an axial slice, 1584 of 65536.
    large = changed(experiment, patches={"size": [256, 256]})
    with pytest.raises(InputError, match=r"patches.size is \[256, 256\].* (97|98|99) % of every patch would be empty"):
        factory.train(large, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_batch_of_a_run_cannot_be_shared_by_any_number(experiment: Experiment) -> None:
    settings = changed(experiment, training={"batch_size": 2, "accumulate": 3}).training
    assert factory.training.shared_batch(settings, 2, None) == (12, 3)
    checkpoint = {"processes": 2, "batch": 12}
    with pytest.warns(UserWarning, match="3 processes instead of 2"):
        assert factory.training.shared_batch(settings, 3, checkpoint) == (12, 2)
    with pytest.warns(UserWarning, match="1 processes instead of 2"):
        assert factory.training.shared_batch(settings, 1, checkpoint) == (12, 6)
    with pytest.raises(InputError, match=r"5 processes cannot share equally. Start 1, 2, 3, 4, 6, 12 processes"):
        factory.training.shared_batch(settings, 5, checkpoint)
