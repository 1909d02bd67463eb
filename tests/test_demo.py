"""The demo, shortened: it runs from end to end and its baselines are what they claim."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medcyclegan import demo


def test_best_lookup_is_the_best_table() -> None:
    random = np.random.default_rng(0)
    intensity = random.integers(0, 4, 4000).astype(float)
    truth = np.array([-1000.0, 40.0, 1000.0, -100.0])[intensity.astype(int)]
    assert np.array_equal(demo.best_lookup(intensity, truth, bins=4), truth)
    noisy = truth + random.normal(0, 10, 4000)
    error = np.abs(demo.best_lookup(intensity, noisy, bins=4) - noisy).mean()
    for shift in (-5, 5):
        assert error < np.abs(demo.best_lookup(intensity, noisy, bins=4) + shift - noisy).mean()


@pytest.mark.slow
def test_short_demo(tmp_path: Path) -> None:
    code = (
        "from medcyclegan import demo; demo.EXPERIMENT['training'] |= "
        "{'steps': 30, 'log_every': 10, 'picture_every': 30, 'checkpoint_every': 30};"
        "import sys; sys.argv = ['medcyclegan', 'demo', '-o', 'out', '-d', 'cpu', '--json'];"
        "from medcyclegan.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    told = json.loads(done.stdout)
    assert set(told) == {"mae", "baselines", "seconds", "report"}
    assert set(told["baselines"]) == {"constant", "lookup_table", "untrained"}
    # What is known of the phantoms: the table is better than the constant, and both than random weights.
    assert told["baselines"]["lookup_table"] < told["baselines"]["constant"] < told["baselines"]["untrained"]
    page = (tmp_path / told["report"]).read_text()
    assert f"{told['mae']:.4g}" in page and page.count("data:image/webp") >= 9
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)
