"""The only place where a config becomes objects: prepared cohorts, networks, trainings, translators."""

from medcyclegan.factory.cohorts import assembled, cohort, is_prepared, left_out, prepare
from medcyclegan.factory.devices import bf16_is_safe, choose_device
from medcyclegan.factory.networks import make_networks, make_objective, predict_memory, require_patch_size
from medcyclegan.factory.runs import PLAN_NAME, NewSettings, TrainingResult, alone_in, require_new_run, resume, train
from medcyclegan.factory.step_time import StepTime, measure_step
from medcyclegan.factory.trainers import make_trainer
from medcyclegan.factory.training import Training
from medcyclegan.factory.translators import choose_checkpoint, load_translator, load_untrained

__all__ = [
    "PLAN_NAME",
    "NewSettings",
    "StepTime",
    "Training",
    "TrainingResult",
    "alone_in",
    "assembled",
    "bf16_is_safe",
    "choose_checkpoint",
    "choose_device",
    "cohort",
    "is_prepared",
    "left_out",
    "load_translator",
    "load_untrained",
    "make_networks",
    "make_objective",
    "make_trainer",
    "measure_step",
    "predict_memory",
    "prepare",
    "require_new_run",
    "require_patch_size",
    "resume",
    "train",
]
