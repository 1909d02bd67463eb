"""Planning: from a look at the volumes and at the machine to an experiment, with a reason for every choice."""

from medcyclegan.plan.make import make_plan, planned_run
from medcyclegan.plan.plan import GIB, Machine, Plan, pretended_gpu, this_machine
from medcyclegan.plan.rules import USABLE, decide
from medcyclegan.plan.text import expected_time, save, to_dict, to_yaml

__all__ = [
    "GIB",
    "USABLE",
    "Machine",
    "Plan",
    "decide",
    "expected_time",
    "make_plan",
    "planned_run",
    "pretended_gpu",
    "save",
    "this_machine",
    "to_dict",
    "to_yaml",
]
