"""A plan as YAML that `medcyclegan train` takes, as plain data, and its expected time in words."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from medcyclegan import __version__
from medcyclegan.atomic import atomic_file
from medcyclegan.plan.plan import Plan, gib
from medcyclegan.progress import duration


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "experiment": plan.content,
        "reasons": plan.reasons,
        "memory_bytes": plan.memory,
        "seconds": plan.seconds[1] if plan.seconds else None,
        "seconds_between": [plan.seconds[0], plan.seconds[2]] if plan.seconds else None,
        "for": plan.purpose,
        "warnings": plan.warnings,
    }


def to_yaml(plan: Plan) -> str:
    """The plan as a config, each choice under its reason."""
    lines = [f"# Planned by medcyclegan {__version__} for {plan.purpose}."]
    if plan.memory is not None:
        lines.append(f"# Expected memory: {gib(plan.memory)}.")
    lines += _comment(f"Expected time: {expected_time(plan)}")
    for warning in plan.warnings:
        lines += _comment(f"Look at: {warning}.")
    for section, keys in plan.content.items():
        lines.append(f"{section}:")
        for key, value in keys.items():
            shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n")
            lines += textwrap.wrap(
                plan.reasons[f"{section}.{key}"], 110, initial_indent="  # ", subsequent_indent="  # "
            )
            lines.append(f"  {key}: {shown.strip()}")
    return "\n".join(lines) + "\n"


def save(plan: Plan, path: Path) -> None:
    """Write the plan as YAML that `medcyclegan train` takes."""
    with atomic_file(path) as temporary:
        temporary.write_text(to_yaml(plan), encoding="utf-8")


def expected_time(plan: Plan) -> str:
    """How long the training will take, and how sure that is: a sentence or two."""
    if plan.seconds is None or plan.step_time is None:
        return "not known, because the machine is not this one."
    low, _, high = plan.seconds
    step = plan.step_time
    return (
        f"{duration(low, high)} on this machine, as busy as it is now. After a warm-up, {step.steps} steps took "
        f"{step.median:.2g} s in the median and {step.low:.2g} to {step.high:.2g} s in eight of ten cases. Preparing "
        "the volumes comes on top."
    )


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="#   ")
