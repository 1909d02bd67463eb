"""Planning: an experiment for the given volumes and machine, with a reason for every choice."""

from medcyclegan.plan.make import make_plan, planned_run
from medcyclegan.plan.plan import GIB, Machine, Plan, hypothetical_gpu, this_machine
from medcyclegan.plan.rules import USABLE, decide
from medcyclegan.plan.text import expected_time, save, to_dict, to_yaml

__all__ = [
    "GIB",
    "USABLE",
    "Machine",
    "Plan",
    "decide",
    "expected_time",
    "hypothetical_gpu",
    "make_plan",
    "planned_run",
    "save",
    "this_machine",
    "to_dict",
    "to_yaml",
]
