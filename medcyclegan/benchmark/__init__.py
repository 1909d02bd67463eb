"""How fast this machine trains, converts and reads patches, against a plain reference timed beside it.

Both take their turns within one run, and medians are compared, so that whatever else the machine does slows both alike.
"""

from medcyclegan.benchmark.convert import benchmark_convert, benchmark_convert_run
from medcyclegan.benchmark.data import benchmark_data
from medcyclegan.benchmark.experiments import example_experiment, experiment_for, patch_size
from medcyclegan.benchmark.train import benchmark_train
from medcyclegan.benchmark.wording import described

__all__ = [
    "benchmark_convert",
    "benchmark_convert_run",
    "benchmark_data",
    "benchmark_train",
    "described",
    "example_experiment",
    "experiment_for",
    "patch_size",
]
