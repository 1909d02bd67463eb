"""What is exported: one direction of a checkpoint, with its description."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from medcyclegan.config import parse
from medcyclegan.documents import read_table
from medcyclegan.errors import InputError
from medcyclegan.evaluation.results import read_results
from medcyclegan.factory import load_translator
from medcyclegan.factory.networks import make_network
from medcyclegan.inference.translator import Translator
from medcyclegan.registry import GENERATORS, Part
from medcyclegan.training.checkpoint import load_checkpoint
from medcyclegan.transforms.pipeline import Preparation


@dataclass(frozen=True)
class Model:
    """One direction of a checkpoint.

    Attributes:
        name: of the run, followed by the direction.
        folder: of the run, for its pictures.
        direction: "ab" or "ba".
        translator: the loaded checkpoint, on the CPU in float32.
        experiment: its resolved config as plain data, without the paths of the data.
        source, target: names of the domains.
        step, steps: optimizer steps done and planned.
        imported: the weights come from elsewhere, and nothing is known of their training.
        scores: what was measured, name -> value.
        scored: what the scores are of, in words.
        allow: modules of the user's own that its parts come from.
    """

    name: str
    folder: Path
    direction: str
    translator: Translator
    experiment: dict[str, Any]
    source: str
    target: str
    step: int
    steps: int
    imported: bool
    scores: dict[str, float]
    scored: str
    allow: tuple[str, ...] = ()

    @property
    def generator(self) -> nn.Module:
        return self.translator.generator

    @property
    def preparation(self) -> Preparation:
        """How source volumes come onto the working grid."""
        return self.translator.source.preparations[0]

    @property
    def channels(self) -> int:
        return self.translator.window.depth

    @property
    def finished(self) -> bool:
        return not self.imported and self.step >= self.steps

    @property
    def architecture(self) -> str:
        """The generator's `_target_` as the config has it."""
        return str(self.experiment["model"]["generator"]["_target_"])

    def network(self) -> dict[str, Any]:
        """The generator as an entry of a MONAI config: a class by its dotted path, and its arguments."""
        leaf = self.experiment["model"]["generator"]
        given = {
            "in_channels": self.channels,
            "out_channels": self.channels,
            "spatial_dims": self.translator.window.spatial_dims,
        }
        arguments = {key: value for key, value in leaf.items() if key != "_target_"}
        part = GENERATORS.find(leaf["_target_"])
        target = f"{part.module}.{part.class_name}" if isinstance(part, Part) else leaf["_target_"]
        if target.startswith("medcyclegan."):
            return {"_target_": target, **arguments, **given}
        adapter = str(GENERATORS.adapter)
        return {"_target_": adapter, "network": {"_target_": target, **arguments, **given}, **given}


def read_model(run: Path, direction: str, *, scores: Path | None = None, allow: Iterable[str] = ()) -> Model:
    """Load one direction of a run or checkpoint for export.

    Args:
        run: a run or a checkpoint file.
        direction: "ab" or "ba".
        scores: folder that `medcyclegan evaluate` wrote for this direction; by default the validation of the run.
        allow: as in `load_translator`.

    Raises:
        InputError: there is no such checkpoint, direction or evaluation.
    """
    allow = tuple(allow)
    translator = load_translator(run, direction=direction, device="cpu", allow=allow)
    translator.window = replace(translator.window, bf16=False)
    content = load_checkpoint(run, allow)
    # The plain network, with the layers that other programs know; the loaded one is adapted to this processor.
    plain = make_network(f"gen_{direction}", parse(content["experiment"], f"the config in {run}", allow))
    plain.load_state_dict(translator.generator.state_dict())
    translator.generator = plain.eval().requires_grad_(False)
    if len(translator.channels) > 1:
        raise InputError(
            f"{run} takes {len(translator.channels)} contrasts ({', '.join(translator.channels)}), and what is "
            "exported takes one volume.",
            "Use it with `medcyclegan convert` or from Python with load_translator, or export a model of one contrast.",
        )
    folder = run if run.is_dir() else run.parent
    experiment = {key: value for key, value in content["experiment"].items() if key != "data"}
    source, target = (str(content["domains"][domain]["name"]) for domain in direction)
    imported = "optimizers" not in content
    measured, words = _scores(folder, scores, direction, imported)
    stem = run.resolve().name if run.is_dir() else run.resolve().stem
    return Model(
        name=f"{stem}_{direction}",
        folder=folder,
        direction=direction,
        translator=translator,
        experiment=experiment,
        source=source,
        target=target,
        step=int(content["step"]),
        steps=int(experiment["training"]["steps"]),
        imported=imported,
        scores=measured,
        scored=words,
        allow=allow,
    )


def _scores(folder: Path, scores: Path | None, direction: str, imported: bool) -> tuple[dict[str, float], str]:
    if scores is not None:
        try:
            results = read_results(scores)
        except InputError as error:
            raise InputError(f"the scores in {scores} cannot be used: {error}") from error
        found = {name: entry["mean"] for name, entry in results.statistics.items() if entry["mean"] is not None}
        cases = max((int(entry["n"] or 0) for entry in results.statistics.values()), default=0)
        protocol = results.summary.get("protocol", "protocol not recorded")
        return found, f"means over {cases} cases, as `medcyclegan evaluate` found them ({protocol})"
    table = folder / "validation.csv"
    if direction == "ab" and not imported and table.is_file():
        rows = read_table(table, f"table {table}")[1]
        if rows:
            last = rows[-1]
            found = {name: float(value) for name, value in last.items() if name != "step" and _is_number(value)}
            return found, f"the run's validation pairs at step {last['step']}, inside the body, on the working grid"
    return {}, "nothing: this direction was not evaluated"


def _is_number(text: Any) -> bool:
    try:
        return float(text) == float(text)
    except (TypeError, ValueError):
        return False
