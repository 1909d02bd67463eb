"""Telling CT from MR by the intensities."""

from __future__ import annotations

import numpy as np

from medcyclegan import phantom
from medcyclegan.io.reader import read_volume
from medcyclegan.survey.hounsfield import looks_like_hu, modality_findings


def test_phantoms(cohort: phantom.Cohort) -> None:
    assert all(looks_like_hu(read_volume(file).numpy()[0]) for file in (*cohort.train_ct, *cohort.test_ct))
    assert not any(looks_like_hu(read_volume(file).numpy()[0]) for file in (*cohort.train_mr, *cohort.test_mr))


def test_ct_without_intercept_is_not_hu(cohort: phantom.Cohort) -> None:
    assert not looks_like_hu(read_volume(cohort.test_ct[0]).numpy()[0] + 1024)


def test_every_case_that_does_not_fit_is_named() -> None:
    assert modality_findings({"x": True, "y": False}, "CT")[0].startswith("y:")
    assert modality_findings({"x": True, "y": False}, "MR")[0].startswith("x:")
    assert not looks_like_hu(np.zeros((5, 5, 5)))
