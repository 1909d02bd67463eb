"""MONAI's and Ignite's handlers in a training: where the time of a step goes, and losses in Python's log.

    python examples/06_handlers.py OUTPUT_FOLDER

The trainer is a `monai.engines.Trainer`, so whatever can be attached to an Ignite engine can be attached to it. One
iteration is one step; `engine.state.output` holds the losses as tensors on the device, and reading one makes the host
wait for it, so a handler does that every so many steps.
"""

import logging
import sys
from pathlib import Path

from ignite.engine import Events
from ignite.handlers import BasicTimeProfiler
from monai.handlers import StatsHandler

from medcyclegan import config, factory, phantom

output = Path(sys.argv[1] if len(sys.argv) > 1 else "example-06")
cohort = phantom.write_cohort(
    output / "phantoms", train_mr=2, train_ct=2, test=1, spacing_mm=(6.0, 6.0, 8.0), shape=(36, 44, 20)
)
experiment = config.parse(
    {
        "data": {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent)},
        "model": {"generator": {"filters": 8, "blocks": 2}, "discriminator": {"filters": 8, "layers": 1}},
        "training": {"steps": 20, "log_every": 10},
    },
    "this example",
)

# MONAI: every tenth step's losses go to the logger "losses".
logging.getLogger("losses").setLevel(logging.INFO)
logging.getLogger("losses").addHandler(logging.StreamHandler(sys.stdout))
losses = StatsHandler(
    iteration_log=lambda engine, step: step % 10 == 0,
    epoch_log=False,
    name="losses",
    tag_name="step",
    output_transform=lambda found: {name: float(loss) for name, loss in found.items() if name.startswith("cycle")},
)


class Clock:
    """Ignite's profiler; its `attach` takes the engine, and it tells at the end."""

    def __init__(self) -> None:
        self.profiler = BasicTimeProfiler()

    def attach(self, engine) -> None:
        self.profiler.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self.tell)

    def tell(self, engine) -> None:
        times = self.profiler.get_results()
        step, data = times["processing_stats"]["mean"], times["dataflow_stats"]["mean"]
        print(f"a step takes {1000 * step:.0f} ms, of which the patches make it wait {1000 * data:.1f} ms more")


factory.train(experiment, output / "run", handlers=[losses, Clock()])
