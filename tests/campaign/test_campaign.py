"""The long campaign: `pytest -m campaign`. Seeds are fixed; CAMPAIGN_SEED moves on to others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from campaign import outcomes
from campaign.kills import faults
from campaign.scenarios import SCENARIOS
from campaign.trials import EVERY, trial
from campaign.verbs import VERBS
from campaign.workplace import workplace

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")]

FIRST = int(os.environ.get("CAMPAIGN_SEED", "0"))
MUTATIONS = 120  # of each format: above 3000 in all


@pytest.mark.parametrize("name", EVERY)
def test_damaged_input_is_refused_by_name_or_read_as_its_format_says(name: str) -> None:
    workplace()
    todo = [(name, seed) for seed in range(FIRST, FIRST + (MUTATIONS // 6 if name in VERBS else MUTATIONS))]
    wrong = [found for found in outcomes.run(trial, todo) if found.word not in outcomes.GOOD]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_was_disturbed_completes_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    workplace()
    wrong = list(faults(name, SCENARIOS[name], tmp_path, seed=FIRST))
    assert not wrong, "\n".join(wrong)
