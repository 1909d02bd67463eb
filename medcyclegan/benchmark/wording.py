"""Results in words."""

from __future__ import annotations

from typing import Any

from medcyclegan.benchmark.convert import HU_PER_UNIT
from medcyclegan.inference.translator import BF16_LIMIT


def described(result: dict[str, Any]) -> list[str]:
    """A result in words."""
    size = " x ".join(map(str, result["size"]))
    if result["verb"] == "data":
        return [
            f"loader: {result['read_patches_per_s']:.0f} patches/s of {size}; training consumes "
            f"{result['consumed_patches_per_s']:.1f}: {result['speedup']:.1f} times as many (5 are enough)"
        ]
    lines = [f"{result['device']}, {result['cores']} cores, {size}, {result['precision']}"]
    for name in ("ours", "reference"):
        each = result[name]
        if result["verb"] == "convert":
            lines.append(f"{name}: {each['slices_per_s']:.2f} slices/s")
        else:
            memory = f", {each['peak_memory_gib']:.2f} GiB" if "peak_memory_gib" in each else ""
            rates = f"{each['steps_per_s']:.3f} steps/s, {each['images_per_s']:.3f} images/s"
            lines.append(f"{name}: {rates}, {each['cpu_seconds']:.2f} s of processor time a step{memory}")
    lines.append(f"speedup: {result['speedup']:.2f}")
    if result["verb"] == "convert":
        untrained = " with untrained weights, which exaggerate it" if result["weights"] == "untrained" else ""
        return [
            *lines,
            f"mean difference: {result['mean_difference_hu']:.2f} HU{untrained}; `convert` keeps bfloat16 only where "
            f"it changes a volume by less than {BF16_LIMIT * HU_PER_UNIT:g} HU",
        ]
    ours = result["ours"]
    lines.append(
        f"{ours['flop_per_s'] / 1e9:.0f} GFLOP/s, {100 * ours['share_of_ceiling']:.0f} % of the "
        f"{ours['ceiling_flop_per_s'] / 1e9:.0f} that matrix products reach"
    )
    for precision, found in result["agreement"].items():
        values = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        lines.append(f"relative difference to the reference, {precision}: {values}")
    return lines
