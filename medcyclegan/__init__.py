"""medcyclegan: translation of medical volumes between modalities without paired data.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcyclegan.errors import InputError
    from medcyclegan.evaluation.evaluate import evaluate
    from medcyclegan.factory import load_translator

__version__ = "0.1.0"
__all__ = ["InputError", "__version__", "evaluate", "load_translator"]

_HOMES = {"load_translator": "factory", "InputError": "errors", "evaluate": "evaluation.evaluate"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medcyclegan' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"medcyclegan.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
