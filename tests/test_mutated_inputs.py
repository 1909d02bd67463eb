"""The strongest of the campaign: mutations that the program once got wrong, and that nothing is left out of it."""

from __future__ import annotations

import os

import pytest
from campaign import outcomes
from campaign.formats import FORMATS
from campaign.scenarios import SCENARIOS, SILENT
from campaign.trials import EVERY, trial
from campaign.workplace import workplace

from medcyclegan import cli
from medcyclegan.convert import ENDINGS
from medcyclegan.io.pictures import PICTURE_SUFFIXES
from medcyclegan.io.reader import VOLUME_SUFFIXES

# Format -> seeds; see `campaign`.
SEEDS: dict[str, tuple[int, ...]] = {
    "nifti1": (7, 15, 22, 29, 38, 40, 42, 65, 87, 106, 110, 125, 159, 196),
    "nifti1-gz": (0, 3, 7, 8, 14, 15, 17, 19, 24, 31, 46, 52, 92, 111),
    "nifti2": (0, 13, 15, 23, 25, 28, 37, 64, 71, 83, 100, 154, 218, 284),
    "nifti2-gz": (3, 5, 10, 23, 29, 32, 59, 61, 63, 68, 72, 78, 93, 110),
    "mha-raw": (1, 6, 9, 24, 27, 30, 37, 38, 50, 54, 58, 63, 78, 92),
    "mha-compressed": (2, 4, 18, 29, 37, 39, 54, 82, 99, 103, 111, 119, 124, 126, 350),
    "mhd-split": (2, 4, 6, 8, 10, 14, 15, 25, 37, 40, 49, 58, 70, 71),
    "nrrd-raw": (0, 28, 104, 120, 159, 251, 330, 195),
    "nrrd-raw-detached": (34, 43, 45, 46, 106, 134, 137, 140, 155, 198, 322, 325, 330, 362, 199),
    "nrrd-gzip": (6, 19, 24, 35, 48, 67, 101, 143, 195, 199, 213, 220, 231, 282),
    "nrrd-gzip-detached": (11, 41, 73, 76, 87, 103, 112, 118, 175, 205, 219, 233, 354, 368),
    "dicom-folder": (2, 13, 48, 50, 53, 62, 66, 99, 157, 200, 206, 211, 261, 347, 10065),
    "dicom-enhanced": (21, 66, 74, 77, 82, 85, 94, 124, 157, 164, 196, 229, 255, 262),
    "dicom-zip": (19, 35, 62, 160, 178, 216, 218, 249, 10105),
    "png": (54, 92, 101, 103, 136, 10009, 10139),
    "tif": (11, 22, 51, 53, 55, 69, 70, 85, 135, 169, 177, 197, 220, 249),
    "tiff": (22, 57, 58, 67, 78, 99, 108, 109, 122, 125, 131, 134, 140, 149),
    "datalist": (2, 4, 9, 10, 12, 30, 42, 75, 79, 88, 89, 110, 160, 211),
    "config": (5, 33, 57, 63, 65, 77, 85, 87, 125, 157, 204, 256, 258, 311),
    "table": (12, 14, 26, 52, 57, 67, 70, 73, 86, 88, 92, 139, 173, 235),
    "pairs-table": (26, 37, 59, 67, 163, 185, 219, 239, 290, 335, 343, 369),
    "gradings-table": (6, 14, 53, 68, 75, 85, 101, 141, 156, 183, 190, 274, 336, 361, 10062),
    "prepared-json": (9, 12, 13, 22, 25, 28, 31, 39, 40, 90, 92, 130, 253, 293),
    "prepared-arrays": (0, 1, 2, 3, 4, 5, 19, 31, 32, 50, 52, 57, 64, 77),
    "checkpoint": (14, 24, 39, 46, 75, 83, 106, 123, 133, 152, 262, 281, 289, 328),
    "scores-json": (3, 12, 14, 15, 33, 34, 36, 43, 56, 59, 78, 99, 100, 143),
    "verb-convert": (0, 1),
    "verb-prepare": (0, 1),
    "verb-evaluate": (0,),
    "verb-inspect": (0, 1),
    "scores-csv": (3, 4, 9, 10, 13, 17, 29, 32, 33, 34, 36, 37, 41, 65),
}


@pytest.fixture(scope="module", autouse=True)
def _base() -> None:
    workplace()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize("name", EVERY)
def test_damaged_input_is_refused_by_name_or_read_as_its_format_says(name: str) -> None:
    wrong = [f for f in outcomes.run(trial, [(name, seed) for seed in SEEDS[name]]) if f.word not in outcomes.GOOD]
    assert not wrong, "\n".join(map(str, wrong))


def test_every_format_is_in_the_campaign() -> None:
    missing = {*VOLUME_SUFFIXES, *PICTURE_SUFFIXES, "DICOM"} - {found.suffix for found in FORMATS.values()}
    assert not missing, f"tests/campaign/formats.py has no sample, mutator and reader of its own for {missing}"


def test_every_verb_is_in_the_campaign() -> None:
    verbs = {c.name or c.callback.__name__.replace("_", "-") for c in cli.app.registered_commands if c.callback}
    missing = verbs - {scenario.verb for scenario in SCENARIOS.values()} - set(SILENT)
    assert not missing, f"tests/campaign/scenarios.py has no scenario for {missing}, and no reason why"
    assert set(SILENT) <= verbs


def test_every_format_of_results_is_in_the_campaign() -> None:
    missing = set(ENDINGS) - {"nifti"} - {name.removeprefix("convert-") for name in SCENARIOS}
    assert not missing, f"tests/campaign/scenarios.py converts to no {missing}"
