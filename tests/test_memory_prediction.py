"""The memory that is predicted for a step is what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medcyclegan import config, factory
from medcyclegan.errors import InputError

# A process of its own, because only the largest memory of a whole process can be read.
STEP = """
import json, resource, sys
import torch
from medcyclegan import factory, config
torch.set_num_threads(2)
experiment = config.parse(json.loads(sys.argv[1]), "the test")
predicted = factory.predict_memory(experiment, bf16=experiment.training.precision == "bf16", device="cpu").total
factory.measure_step(experiment, torch.device("cpu"), least=1, most=1)
print(json.dumps([predicted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""
# Large images and narrow networks: as much memory in less time, above all where bfloat16 is not computed in hardware.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "slices, ResNet": {
        "patches": {"size": [224, 224]},
        "model": {"generator": {"filters": 24, "blocks": 6}, "discriminator": {"filters": 16}},
        "training": {"batch_size": 2, "precision": "float32"},
    },
    "stacks, U-Net, bfloat16": {
        "patches": {"size": [256, 256], "neighbors": 1},
        "model": {"generator": {"_target_": "attention_unet", "filters": 8}, "discriminator": {"filters": 8}},
        "losses": {"structure": [{"_target_": "mask_consistency"}, {"_target_": "mind"}]},
        "training": {"batch_size": 2, "precision": "bf16"},
    },
    "boxes": {
        "patches": {"spatial_dims": 3, "size": [64, 64, 48]},
        "model": {"generator": {"filters": 16, "blocks": 4}, "discriminator": {"filters": 16, "layers": 2}},
        "training": {"precision": "float32"},
    },
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_prediction_is_within_a_fifth_of_what_a_process_takes(name: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", STEP, json.dumps(EXPERIMENTS[name])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    predicted, taken = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: predicted {predicted / 2**30:.2f} GiB, taken {taken / 2**30:.2f} GiB")
    assert predicted == pytest.approx(taken, rel=0.2)


def test_states_are_counted_by_hand() -> None:
    """Every weight three times (itself, two moments), those of the generators a fourth time (their average)."""
    content = {**EXPERIMENTS["slices, ResNet"], "patches": {"size": [32, 32]}}
    experiment = config.parse(content, "the test")
    memory = factory.predict_memory(experiment, bf16=False, device="cpu")
    weights = {n: sum(p.numel() for p in net.parameters()) for n, net in factory.make_networks(experiment).items()}
    assert memory is not None
    assert memory.states == 4 * (3 * sum(weights.values()) + weights["gen_ab"] + weights["gen_ba"])


def test_every_further_image_takes_as_much_as_the_one_before() -> None:
    def activations(batch: int) -> int:
        content = {**EXPERIMENTS["stacks, U-Net, bfloat16"], "training": {"batch_size": batch}}
        memory = factory.predict_memory(config.parse(content, "the test"), bf16=True, device="cpu")
        assert memory is not None
        return memory.activations

    two, four, six = (activations(batch) for batch in (2, 4, 6))
    assert six - four == pytest.approx(four - two, rel=0.05) and four > 1.7 * two  # gradients do not grow with it


def test_a_training_that_does_not_fit_is_refused_before_it_starts(
    experiment: config.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory.trainers, "free_memory", lambda device: 0.3 * 2**30)
    with pytest.raises(InputError, match=r"expected to take 0\.6 GiB, and cpu has 0\.3 GiB left.*patches\.size"):
        factory.train(experiment, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_network_that_looks_at_values_is_told_and_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = config.parse({"patches": {"size": [32, 32]}}, "the test")

    def looks(*given: Any) -> Any:
        if torch.ones(1).item() > 0:
            raise AssertionError

    monkeypatch.setattr(factory.networks, "make_objective", looks)
    with pytest.warns(UserWarning, match="cannot be predicted"):
        assert factory.predict_memory(experiment, bf16=False, device="cpu") is None
