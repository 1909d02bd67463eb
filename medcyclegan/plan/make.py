"""Plan an experiment for the volumes and the machine, with a reason for every choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medcyclegan import config, factory, ranks
from medcyclegan.config import Experiment
from medcyclegan.errors import InputError
from medcyclegan.plan.domain import Domain, describe
from medcyclegan.plan.plan import Machine, Plan, this_machine
from medcyclegan.plan.rules import BOX, decide
from medcyclegan.plan.text import save
from medcyclegan.progress import Progress

EPOCHS = 200  # of the CycleGAN paper (its section 7.1), an epoch being all slices of the larger domain
STEPS = (20_000, 200_000)


def make_plan(
    experiment: Experiment, machine: Machine, *, hours: float = 12.0, progress: Progress | None = None
) -> Plan:
    """Survey the data that `experiment` names and plan a training on it.

    Args:
        experiment: its `data` and `domains` are read; the rest is what the plan decides.
        machine: where the training would run.
        hours: that a training on a processor may take; elsewhere the number of steps follows from the data.

    Raises:
        InputError: if the data cannot be used, or nothing fits into the memory.
    """
    if not hours > 0:
        raise InputError(f"hours must be above 0, got {hours}.")
    cohort, domains = factory.cohort(experiment, progress), experiment.domains
    a, b = (
        describe(cohort.groups[key], getattr(domains, key).modality, progress, cohort.groups[f"pairs_{key}"])
        for key in ("a", "b")
    )
    named = {key: domain.model_copy(update={"contrasts": cohort.contrasts.get(key, ())}) for key, domain in domains}
    plan = decide(a, b, machine, named)
    _choose_steps(plan, a, b, machine, hours)
    _name_data(plan, experiment.data)
    return plan


@contextmanager
def planned_run(
    experiment: Experiment, run: Path, *, device: str = "auto", overrides: Iterable[str] = (), progress: Progress
) -> Iterator[tuple[Plan, Experiment]]:
    """A plan for the data of an experiment, saved in a new run folder, which stays locked meanwhile.

    Args:
        experiment: as in `make_plan`.
        run: the folder, which is made.
        device: of the training.
        overrides: settings that take precedence over the plan, as in `config.load`.
        progress: watches.

    Yields:
        The plan, and the experiment to train.

    Raises:
        InputError: as `make_plan`; there is such a run; or there are several processes, each of which would plan.
    """
    if ranks.env_rank()[1] > 1:
        raise InputError(
            "several processes need a config; without one, each would plan for itself.",
            "Write one first: medcyclegan plan ... -o plan.yaml",
        )
    with factory.alone_in(run):
        factory.require_new_run(run)
        plan = make_plan(experiment, this_machine(device), progress=progress)
        run.mkdir(parents=True, exist_ok=True)
        save(plan, run / factory.PLAN_NAME)
        yield plan, config.load(run / factory.PLAN_NAME, overrides, allow=experiment.allow)


def _choose_steps(plan: Plan, a: Domain, b: Domain, machine: Machine, hours: float) -> None:
    settings = plan.content["training"]
    spacing = plan.content["preparation"]["spacing"]
    thick = spacing[2] if plan.content["patches"]["spatial_dims"] == 2 else BOX[2] * spacing[2] / 2
    images = max(domain.volumes * domain.height / thick for domain in (a, b))
    wanted = min(max(EPOCHS * images / settings["batch_size"], STEPS[0]), STEPS[1])
    wanted = int(round(wanted, -3))
    reason = f"{EPOCHS} times through about {images:.0f} images, but {STEPS[0]} to {STEPS[1]}"
    if machine.device is None:
        plan.choose("training.steps", wanted, reason)
        return
    plan.step_time = factory.measure_step(plan.experiment(), machine.device)
    each = plan.step_time.median
    if machine.kind == "cpu" and wanted * each > hours * 3600:
        wanted = max(100, int(hours * 3600 / each) // 100 * 100)
        reason = f"what {hours:g} h allow at {each:.2f} s per step, measured here; more would be better"
    plan.choose("training.steps", wanted, reason)
    every = max(10, min(1000, wanted // 20))
    plan.choose("training.checkpoint_every", every, f"about every {every * each / 60:.0f} min")
    plan.choose("training.picture_every", every, "with every checkpoint")


def _name_data(plan: Plan, data: config.Data) -> None:
    """Name the volumes that were planned for, so that the plan can be trained from any folder."""
    given = data.model_dump(mode="json", exclude_defaults=True)
    reason = "what was planned for; whole paths, so that the plan can be used from any folder"
    for key, value in given.items():
        if key in config.DATA_PATHS:
            given[key] = str(Path(value).expanduser().absolute())
        plan.reasons[f"data.{key}"], reason = reason, "as given"
    plan.content = {"data": given, **plan.content}
