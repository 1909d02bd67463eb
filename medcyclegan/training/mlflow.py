"""Logging to MLflow by MONAI's handler, where the package mlflow is installed and the config asks for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers import MLFlowHandler

from medcyclegan.errors import InputError


def require_mlflow() -> None:
    """Raise an InputError if mlflow is not installed."""
    if find_spec("mlflow") is None:
        raise InputError(
            "training.mlflow is set, but the package mlflow is not installed.",
            "Install it (pip install mlflow), or set training.mlflow=null.",
        )


def attach_mlflow(engine: Engine, uri: str, run: Path, settings: dict[str, Any], every: int) -> None:
    """Log the losses every so many steps, and the training's settings once.

    Args:
        engine: the trainer.
        uri: tracking URI, or a folder, which gets the database `mlruns.db`: MLflow writes plain folders no more.
        run: folder of the run, whose name the MLflow run takes.
        settings: the experiment as plain data; its section "training" is logged.
        every: steps between two entries.

    Raises:
        InputError: if mlflow is not installed.
    """
    require_mlflow()
    MLFlowHandler(
        tracking_uri=uri if "://" in uri else _database(Path(uri)),
        experiment_name="medcyclegan",
        run_name=run.resolve().name,
        experiment_param={**settings["training"], "seed": settings["seed"]},
        iteration_log=lambda _, step: step % every == 0,  # reading a loss makes the host wait
        epoch_log=False,
        output_transform=lambda losses: {name: float(loss) for name, loss in losses.items()},
        close_on_complete=True,
    ).attach(engine)


def _database(folder: Path) -> str:
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlruns.db'}"
