"""Trainings and conversions in processes of their own, which tests kill and join.

As a script it imports the program once and forks every training from there, because a start takes longer than a tiny
training. Given the folder of a prepared cohort and one to write to, it prints one JSON object.

    python tests/processes.py kill PREPARED FOLDER     one training undisturbed, and one killed again and again
    python tests/processes.py join PREPARED FOLDER     one process, two, two of which one dies, and what remains of it
    python tests/processes.py bundle BUNDLE FOLDER     two that train BUNDLE on FOLDER/volumes, as its config says
    python tests/processes.py share RUN FOLDER         FOLDER/mr converted by one, by two, and by two of which one dies
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from ignite.engine import Events

from medcyclegan import config, factory, ranks
from medcyclegan.convert import Options, convert
from medcyclegan.progress import Silent

NETWORKS = {"generator": {"filters": 4, "blocks": 1}, "discriminator": {"filters": 4, "layers": 1}}
KILLS = 21
STEPS = 90


def tiny(prepared: str, pool_size: int = 2, **training: Any) -> config.Experiment:
    every = {"log_every": 1, "picture_every": 1000, "checkpoint_every": 1, "precision": "float32"}
    content = {
        "model": NETWORKS,
        "objective": {"pool_size": pool_size},
        "training": every | training,
        "patches": {"size": [32, 32]},
        "data": {"source": prepared},
    }
    return config.parse(content, "the test")


def forked(action: Callable[[], Any], log: Path | None = None, environment: dict[str, str] | None = None) -> int:
    """Begin `action` in a process of its own; its exit code is 0, or 1 with the message in `log`."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ.update(environment or {})
        action()
        code = 0
    except BaseException as error:
        if log is not None:
            log.write_text(f"{type(error).__name__}: {error}")
        if log is None:
            traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill(prepared: str, folder: Path) -> dict[str, Any]:
    experiment = tiny(prepared, steps=STEPS)
    whole = ended(forked(lambda: factory.train(experiment, folder / "whole", device="cpu")))
    run, dice = folder / "killed", random.Random(0)
    killed: list[str] = []

    def go_on() -> None:
        begun = any((run / name).exists() for name in ("checkpoint.pt", "config.yaml"))
        factory.resume(run, device="cpu") if begun else factory.train(experiment, run, device="cpu")

    while len(killed) < KILLS:
        before = _partial(run)  # what an earlier kill left
        process = forked(go_on)
        # Every third time while a checkpoint is being written, else a random while after a random number of them.
        saving, saves = len(killed) % 3 == 2, dice.randrange(4) if killed else 0
        pause, seen, done = dice.uniform(0, 0.1), _written(run), 0
        while done < saves or (saving and not _partial(run) - before):
            if os.waitpid(process, os.WNOHANG)[0]:
                raise SystemExit(f"the training ended after {len(killed)} kills")
            done, seen = done + (_written(run) != seen), _written(run)
            time.sleep(0.0005)
        if not saving:
            time.sleep(pause)
        os.kill(process, signal.SIGKILL)
        ended(process)
        killed.append("saving" if _partial(run) - before else "between")
    last = ended(forked(go_on))
    return {"whole": whole, "last": last, "kills": killed, "left": [path.name for path in run.glob(".partial-*")]}


def _written(run: Path) -> int:
    return (run / "checkpoint.pt").stat().st_mtime_ns if (run / "checkpoint.pt").exists() else 0


def _partial(run: Path) -> set[str]:
    """Checkpoints that are being written, or were."""
    return {path.name for path in run.glob(".partial-*-checkpoint.pt")}


class Dies:
    """Ends its process without a word while a step is computed."""

    def __init__(self, rank: str, step: int) -> None:
        self.rank, self.step = rank, step

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(once=self.step), self)

    def __call__(self, engine: Any) -> None:
        if os.environ["RANK"] == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


class InFloat64:
    """Lets networks with float64 weights take float32 images.

    In float32 two orders of adding a sum now and then disagree about the sign of an activation, and with it about more
    than rounding. In float64 they do not, and what is left to see is whether the processes do the same.
    """

    def attach(self, engine: Any) -> None:
        for network in (*engine.objective.networks.values(), *engine.ema.averages.values()):
            network.register_forward_pre_hook(lambda _, given: tuple(image.double() for image in given))


class Losses:
    """Writes the losses of every step, unrounded, to a file of the first process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        if ranks.is_first():
            with self.file.open("a") as stream:
                losses = {name: float(loss) for name, loss in engine.state.output.items()}
                stream.write(json.dumps(losses) + "\n")


def together(action: Callable[[], Any], processes: int, folder: Path) -> list[int]:
    """The exit codes of `action` in several processes, connected as by torchrun; their errors in `rank-<rank>.log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    started = [forked(action, folder / f"rank-{here['RANK']}.log", here) for here in ranks]
    return [ended(process) for process in started]


def join(prepared: str, folder: Path) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    exact = InFloat64()
    one = tiny(prepared, steps=6, batch_size=4)
    two = tiny(prepared, steps=6, accumulate=2)  # two processes, two pieces of one patch each

    def trained(run: str, experiment: config.Experiment, *more: Any) -> None:
        handlers = [exact, Losses(folder / f"{run}.jsonl"), *more]
        factory.train(experiment, folder / run, device="cpu", handlers=handlers)

    codes = {"one": [ended(forked(lambda: trained("one", one)))]}
    codes["two"] = together(lambda: trained("two", two), 2, folder)
    for run in ("again", "alone"):
        codes[f"{run} died"] = together(lambda run=run: trained(run, two, Dies("1", 4)), 2, folder)
    codes["again"] = together(lambda: factory.resume(folder / "again", device="cpu", handlers=[exact]), 2, folder)
    codes["alone"] = [ended(forked(lambda: factory.resume(folder / "alone", device="cpu", handlers=[exact])))]
    return {"codes": codes, "log": (folder / "rank-0.log").read_text()}


class Killed(Silent):
    """Ends its process without a word while the case `at` is translated, as soon as `before` is in the record."""

    def __init__(self, at: str, before: str, record: Path) -> None:
        self.at, self.before, self.record = at, before, record

    def track(self, items: Any, total: int, description: str) -> Any:
        if description.startswith(f"{self.at} "):
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if self.record.exists() and self.before in json.loads(self.record.read_text())["cases"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.01)
        return super().track(items, total, description)


def share(run: str, folder: Path) -> dict[str, Any]:
    codes = {}

    def converted(into: str, resume: bool = False, progress: Any = None) -> None:
        options = Options(device="cpu", resume=resume)
        result = convert(Path(run), [folder / "mr"], folder / into, options, progress)
        (folder / f"{into}-{os.environ.get('RANK', '')}.json").write_text(
            json.dumps({"written": [*result.written], "skipped": [*result.skipped], "failed": result.failed})
        )

    codes["one"] = [ended(forked(lambda: converted("one")))]
    codes["two"] = together(lambda: converted("two"), 2, folder)
    killed = Killed("p3", "p1", folder / "killed" / "run.json")
    codes["killed"] = together(lambda: converted("killed", progress=killed), 2, folder)
    shutil.copytree(folder / "killed", folder / "again")
    codes["resumed"] = [ended(forked(lambda: converted("killed", resume=True)))]
    codes["again"] = together(lambda: converted("again", resume=True), 3, folder)
    return {"codes": codes}


def bundle(bundle: str, folder: Path) -> dict[str, Any]:
    def trained() -> None:
        monai.bundle.run(
            config_file=str(Path(bundle) / "configs" / "multi_gpu_train.json"),
            bundle_root=bundle,
            dataset_dir=str(folder / "volumes"),
            output_dir=str(folder / "run"),
            device="cpu",
            steps=2,
        )

    codes = together(trained, 2, folder)
    logs = {log.name: log.read_text() for log in folder.glob("rank-*.log")}
    return {"codes": codes, "logs": logs}


ACTIONS = {"kill": kill, "join": join, "share": share, "bundle": bundle}

if __name__ == "__main__":
    torch.set_num_threads(1)
    # Every training would predict its memory anew, which takes longer than its steps; other tests look at that.
    factory.trainers.predict_memory = lambda *_, **__: None
    print(json.dumps(ACTIONS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))))
