"""ONNX files of a generator, with dynamic batch and spatial axes, for programs without Python."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcyclegan.atomic import atomic_file
from medcyclegan.errors import InputError
from medcyclegan.export.program import TOLERANCE, Program, largest_difference

# The newest that the exporter of torch writes without conversion.
OPSET = 18
INPUT, OUTPUT = "image", "pred"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Refuse ONNX without its packages, before anything is computed.

    Raises:
        InputError: naming the packages that are missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "In a copy of the repository: pip install -c constraints.txt '.[export]'"
        raise InputError(f"ONNX needs {', '.join(missing)}.", remedy)


def save_onnx(program: Program, generator: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> float:
    """Write an ONNX file and check it in onnxruntime on the CPU against the generator, at three sizes.

    Args:
        program: of the generator.
        generator: in evaluation mode on the CPU.
        path: the file. Its input `image` and output `pred` are (batch, channels, *spatial) float32 in [-1, 1].
        metadata: kept in the file's own list of properties.

    Returns:
        The largest difference from the generator, in [-1, 1].

    Raises:
        InputError: packages are missing, or the network has no ONNX form, or the file differs from it.
    """
    require_onnx()
    with atomic_file(path) as temporary:
        _write(program, generator, temporary, metadata or {})
        difference = largest_difference(program, onnx_function(temporary), generator)
        if not difference <= TOLERANCE:
            raise InputError(
                f"in onnxruntime the generator {type(generator).__name__} differs by up to {difference:.2g} in [-1, 1] "
                f"from what it is in torch; {TOLERANCE:g} is allowed.",
                "Export it as a torch program (--format pt2) instead.",
            )
    return difference


def onnx_function(path: Path) -> Any:
    """An ONNX file as a function from tensor to tensor, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])

    return call


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write(program: Program, generator: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    import onnx

    try:
        # The exporter prints its progress, and warns that torchvision is not installed.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                program.exported,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            model = made.model_proto
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            f"the generator {type(generator).__name__} has no ONNX form: {str(cause).strip().splitlines()[0][:300]}.",
            "Export it as a torch program (--format pt2) instead.",
        ) from error
    for value in (model.graph.input[0], model.graph.output[0]):
        names = ["batch", None, *"xyz"[: program.spatial_dims]]
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name and not axis.HasField("dim_value"):
                axis.dim_param = name
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
