"""The demo, shortened: it runs from end to end and its baselines are what they claim."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from campaign.workplace import verb

from medcyclegan import demo
from medcyclegan.errors import InputError
from medcyclegan.report.baselines import best_lookup


def test_best_lookup_is_the_best_table() -> None:
    random = np.random.default_rng(0)
    intensity = random.integers(0, 4, 4000).astype(float)
    truth = np.array([-1000.0, 40.0, 1000.0, -100.0])[intensity.astype(int)]
    assert np.array_equal(best_lookup(intensity, truth, bins=4), truth)
    noisy = truth + random.normal(0, 10, 4000)
    error = np.abs(best_lookup(intensity, noisy, bins=4) - noisy).mean()
    for shift in (-5, 5):
        assert error < np.abs(best_lookup(intensity, noisy, bins=4) + shift - noisy).mean()


def test_the_length_follows_from_the_time_of_a_step() -> None:
    def end(steps: int, spent: float, step: float) -> float:
        return spent * (1 + demo.AFTERWARDS) + steps * step * demo.OVERHEAD

    fast = demo.choose_length(5, 20, 0.05, 3000)
    assert fast.steps == 3000 and fast.reason.startswith("3000 training steps, all of the demo's")
    for spent, step in ((40, 0.28), (60, 0.5), (35, 0.1)):
        found = demo.choose_length(5, spent, step, 3000)
        assert 300 - 50 * step * demo.OVERHEAD <= end(found.steps, spent, step) <= 300
        assert "at most 3000, to end after about 5 minutes" in found.reason
        whole = int(re.findall(r"--minutes (\d+)", found.reason)[0])
        assert demo.choose_length(whole, spent, step, 3000).steps == 3000  # what is advised is enough
    slow = demo.choose_length(5, 100, 10, 3000)
    assert slow.steps == demo.LEAST_STEPS and "fewer would show nothing" in slow.reason
    with pytest.raises(InputError, match="minutes must be above 0"):
        demo.run_demo(Path("never"), minutes=0)


@pytest.mark.slow
def test_short_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRAINING_HEADS": 4, "TIMED_S": 0.5}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setitem(demo.EXPERIMENT["model"]["generator"], "filters", 4)
    for name, value in {"steps": 10, "log_every": 5, "picture_every": 10, "checkpoint_every": 10}.items():
        monkeypatch.setitem(demo.EXPERIMENT["training"], name, value)
    monkeypatch.chdir(tmp_path)
    done = verb("demo", "-o", "out", "-d", "cpu", "--json")
    assert done.code == 0, done.error
    result = json.loads(done.out)
    assert set(result) == {"mae", "baselines", "steps", "seconds", "parts", "report"}
    assert result["steps"] == 10 and "10 training steps, all of the demo's" in done.error
    assert result["seconds"] == pytest.approx(sum(result["parts"].values()))
    assert set(result["baselines"]) == {"constant", "lookup_table", "untrained"}
    # What is known of the phantoms: the table is better than the constant, and both than random weights.
    assert result["baselines"]["lookup_table"] < result["baselines"]["constant"] < result["baselines"]["untrained"]
    page = (tmp_path / result["report"]).read_text()
    assert f"{result['mae']:.4g}" in page and page.count("data:image/webp") >= 9
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)
