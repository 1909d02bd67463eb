"""The logs and pictures of a run, and a progress bar or lines while it runs.

    metrics.csv         means of the losses over `log_every` steps, speed, learning rates, steps left out
    validation.csv      what every validation measured
    guards.csv          messages of the guards; missing if there were none
    pictures/           panels of the same images every time
    tensorboard/        all of it, and histograms of the values in the body

Speed counts images of one domain: a step of batch size n is n images.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imsave
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from medcyclegan.atomic import atomic_file, sweep
from medcyclegan.errors import InputError
from medcyclegan.training.guards import Remark, SaturationGuard, warn

SHOWN = ("cycle", "reconstruction", "adv", "disc")  # beginnings of the names of the losses that are shown while it runs
PANEL_ROWS = (("real_a", "fake_b", "cycle_a"), ("real_b", "fake_a", "cycle_b"))


@dataclass(frozen=True)
class Panel:
    """The content of a run's pictures.

    Attributes:
        batch: {"a": (B, C, *spatial), "b": ...} in [-1, 1], the same images every time.
        window: "a", "b" -> the values shown black and white, in [-1, 1].
        contrasts: "a", "b" -> number of contrasts among the channels of that domain, of which the first is shown;
            1 where it is left out.
    """

    batch: Mapping[str, Tensor]
    window: Mapping[str, tuple[float, float]]
    contrasts: Mapping[str, int] = field(default_factory=dict)

    def picture(self, images: Mapping[str, Tensor]) -> np.ndarray:
        """Rows of real a, fake b, cycle a and of real b, fake a, cycle b, one pair of rows per image of the batch.

        Args:
            images: name -> (B, C, X, Y) or (B, C, X, Y, Z), of which the middle channel and the middle Z are shown;
                names as in `PANEL_ROWS`, those missing stay black.

        Returns:
            (rows * Y, 3 * X) in [0, 1]; anterior is up and the patient's right is at the left.
        """
        flat = {name: image[..., image.shape[-1] // 2] if image.dim() == 5 else image for name, image in images.items()}
        count, _, width, height = flat["real_a"].shape
        picture = np.zeros((count * 2 * height, 3 * width), dtype=np.float32)
        for sample in range(count):
            for row, names in enumerate(PANEL_ROWS):
                for column, name in enumerate(names):
                    if name in flat:
                        low, high = self.window[name[-1]]
                        channels = flat[name].shape[1] // self.contrasts.get(name[-1], 1)
                        tile = flat[name][sample, channels // 2].float().cpu().numpy().T[::-1]
                        top = (2 * sample + row) * height
                        picture[top : top + height, column * width : (column + 1) * width] = (tile - low) / (high - low)
        return picture.clip(0, 1)


class RunRecorder:
    """Ignite handler that writes a run's curves and pictures.

    The losses stay on the device and are summed there; they are read once every `log_every` steps.

    Args:
        run: folder of the run.
        log_every: steps between lines of metrics.csv; each line is the mean over those steps.
        picture_every: steps between picture panels.
        panel: what the pictures show.
        batch_size: images of each domain per step.

    Attributes:
        saturation: observes the mean losses; None unless set.
    """

    def __init__(
        self,
        run: Path,
        *,
        log_every: int,
        picture_every: int,
        panel: Panel,
        batch_size: int = 1,
    ) -> None:
        self.run = run
        self.log_every = log_every
        self.picture_every = picture_every
        self.panel = panel
        self.batch_size = batch_size
        self.saturation: SaturationGuard | None = None
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.count = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Any) -> None:
        self.board = SummaryWriter(str(self.run / "tensorboard"), purge_step=engine.state.iteration + 1)
        self.started = self.last_log = time.monotonic()
        self.display = _Display(engine.state.epoch_length, engine.state.iteration)
        (self.run / "pictures").mkdir(parents=True, exist_ok=True)
        sweep(self.run / "pictures")
        for name in ("metrics.csv", "validation.csv", "guards.csv"):
            _drop_rows_after(self.run / name, engine.state.iteration)

    def _step(self, engine: Any) -> None:
        step, last = engine.state.iteration, engine.state.iteration == engine.state.epoch_length
        for name, loss in engine.state.output.items():
            finite = torch.isfinite(loss)
            self.sums[name] = self.sums.get(name, 0) + torch.where(finite, loss, torch.zeros_like(loss))
            self.counts[name] = self.counts.get(name, 0) + finite.float()
        self.count += 1
        if step % self.log_every == 0 or last:
            self._log(engine, step)
        if step % self.picture_every == 0 or last:
            self._picture(engine, step)

    def _log(self, engine: Any, step: int) -> None:
        # One transfer for all of them; a loss that was never finite has no mean.
        sums, counts = (
            torch.stack([value.float() for value in of.values()]).tolist() for of in (self.sums, self.counts)
        )
        values = {name: s / n if n else math.nan for name, s, n in zip(self.sums, sums, counts, strict=True)}
        if self.saturation is not None:
            self.saturation.observe(step, self.count, values)
        now = time.monotonic()
        values["steps_per_s"] = self.count / max(now - self.last_log, 1e-9)
        values["images_per_s"] = values["steps_per_s"] * self.batch_size
        for role, name in (("generators", "learning_rate"), ("discriminators", "learning_rate_discriminator")):
            values[name] = engine.schedulers[role].get_last_lr()[0]
        guard = engine.companions.get("finite")
        values["steps_left_out"] = getattr(guard, "skipped", 0)  # since the beginning
        self.last_log, self.sums, self.counts, self.count = now, {}, {}, 0
        _append_row(self.run / "metrics.csv", {"step": step, "seconds": now - self.started, **values})
        for name, value in values.items():
            self.board.add_scalar(f"train/{name}", value, step)
        self.display.show(step, values)

    @torch.no_grad()
    def _picture(self, engine: Any, step: int) -> None:
        averages = engine.ema.averages
        real = {domain: batch.to(engine.state.device) for domain, batch in self.panel.batch.items()}
        images = {f"real_{domain}": batch for domain, batch in real.items()}
        for source, target in (("a", "b"), ("b", "a")):
            forward, back = averages.get(f"gen_{source}{target}"), averages.get(f"gen_{target}{source}")
            if forward is not None:
                images[f"fake_{target}"] = forward(real[source])
            if forward is not None and back is not None:
                images[f"cycle_{source}"] = back(images[f"fake_{target}"])
        picture = self.panel.picture(images)
        with atomic_file(self.run / "pictures" / f"step_{step:07d}.png") as temporary:
            imsave(temporary, picture, cmap="gray", vmin=0, vmax=1)
        self.board.add_image("panel", picture, step, dataformats="HW")
        self.board.flush()

    def validation(self, step: int, values: dict[str, float], histograms: dict[str, Tensor]) -> None:
        """Record what a validation measured, and samples of values by name."""
        _append_row(self.run / "validation.csv", {"step": step, **values})
        for name, value in values.items():
            self.board.add_scalar(f"validation/{name}", value, step)
        for name, sample in histograms.items():
            self.board.add_histogram(f"in the body/{name}", sample, step)
        self.board.flush()

    def report(self, step: int, guard: str, remark: Remark) -> None:
        """Record what a guard reports, and warn of it."""
        _append_row(self.run / "guards.csv", {"step": step, "guard": guard, **asdict(remark)})
        self.board.add_text(f"guards/{guard}", str(remark), step)
        warn(step, guard, remark)

    def _finish(self, engine: Any) -> None:
        self.display.close()
        self.board.close()

    def _fail(self, engine: Any, error: BaseException) -> None:
        for name in ("display", "board"):  # it may have failed before they were made
            if (made := getattr(self, name, None)) is not None:
                with suppress(OSError):  # on a full disk; `error` says so
                    made.close()
        raise error


class _Display:
    """A rich bar on a terminal, else a line at most every ten seconds; both on standard error."""

    def __init__(self, steps: int, done: int) -> None:
        self.steps, self.done, self.started = steps, done, time.monotonic()
        self.last_line = self.started
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self.bar = Progress(
                *Progress.get_default_columns()[:2],
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=Console(stderr=True),
            )
            self.bar.start()
            self.task = self.bar.add_task("training", total=steps, completed=done, status="")

    def show(self, step: int, values: dict[str, float]) -> None:
        losses = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if name.startswith(SHOWN))
        if self.bar is not None:
            self.bar.update(self.task, completed=step, status=f"{values['images_per_s']:.1f} images/s  {losses}")
            return
        now = time.monotonic()
        if now - self.last_line >= 10 or step == self.steps:
            self.last_line = now
            left = (now - self.started) / max(1, step - self.done) * (self.steps - step)
            speed = f"{values['images_per_s']:.2f} images/s, {left / 60:.1f} min left"
            print(f"step {step} of {self.steps}, {speed}, {losses}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _append_row(path: Path, row: Mapping[str, float | str]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})


def _drop_rows_after(path: Path, step: int) -> None:
    """Delete rows of steps that a resumed run repeats, and a row that a crash cut off."""
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= step]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: it is not a table whose lines begin with a step ({error}).",
            "Move it away; the training writes a new one.",
        ) from error
    if kept:
        with atomic_file(path) as temporary:
            temporary.write_text("".join([lines[0], *kept]), encoding="utf-8", newline="")
    else:
        path.unlink()
