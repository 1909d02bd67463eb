"""The quality record: strangers are flagged by name, members of the cohort are not."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medcyclegan import phantom
from medcyclegan.inference.quality import flags, jumping_slices, share_above
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import read_volume
from medcyclegan.survey.anatomy import SKULL_DIP
from medcyclegan.survey.features import Features, features_of
from medcyclegan.survey.volume import measure_volume
from medcyclegan.transforms.pipeline import Preparation, PreparedCase, prepare

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "heads"
SPACING = (4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> phantom.Cohort:
    folder = tmp_path_factory.mktemp("quality") / "phantoms"
    return phantom.write_cohort(folder, seed=5, train_mr=3, train_ct=1, test=1, spacing_mm=SPACING)


@pytest.fixture(scope="module")
def known(heads: phantom.Cohort) -> list[Features]:
    return [features(read_volume(file)) for file in heads.train_mr]


def prepared(volume: MetaTensor) -> PreparedCase:
    return prepare([volume], [Preparation("MR", SPACING, mr_inverted=True)])


def features(volume: MetaTensor, image: np.ndarray | None = None) -> Features:
    case = prepared(volume)
    return features_of(measure_volume(volume), case.image if image is None else image, case.body, case.grid)


def test_features_are_what_they_say(heads: phantom.Cohort) -> None:
    volume = read_volume(heads.train_mr[0])
    case, found = prepared(volume), features(volume)
    shape = nib.load(heads.train_mr[0]).shape
    assert found.spacing_mm == (4.0, 4.0, 4.0)
    assert found.field_of_view_mm == tuple(4.0 * n for n in shape)
    assert found.body_liters == pytest.approx(case.body.sum() * 64 / 1e6, rel=1e-3)
    assert sum(found.histograms[0]) == pytest.approx(1, abs=1e-3)
    assert found.skull_dip > 0.2
    # The same after a permutation of the file's axes: features are of RAS.
    turned = MetaTensor(volume.permute(0, 3, 1, 2), affine=volume.affine[:, [2, 0, 1, 3]])
    assert features(turned) == found
    assert Features.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_head_like_those_trained_on_is_not_flagged(heads: phantom.Cohort, known: list[Features]) -> None:
    found = features(read_volume(heads.test_mr[0]))
    assert flags(found, known, "MR", ["T1w"]) == []


def test_strangers_are_flagged(heads: phantom.Cohort, known: list[Features]) -> None:
    volume, ct = read_volume(heads.test_mr[0]), read_volume(heads.test_ct[0])

    def flags_of(changed: MetaTensor) -> str:
        return " | ".join(flags(features(changed), known, "MR", ["T1w"]))

    coarse = volume.clone()
    coarse.affine[:3, int(np.abs(coarse.affine[2, :3].numpy()).argmax())] *= 2
    assert "spacing head-foot is 8 mm" in flags_of(coarse) and "liters" in flags_of(coarse)
    assert "unlike those in training" in flags_of(ct + 1024)
    hu = ct.numpy()[0]
    labels, _ = ndimage.label(ndimage.binary_opening((hu > 0) & (hu < 70)))
    brain = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    assert "skull-stripped?" in flags_of(volume * torch.from_numpy(brain)[None])
    case = prepared(volume)
    other = (2 * ((case.image + 1) / 2) ** 4 - 1).astype(np.float32)
    assert "another sequence" in " ".join(flags(features(volume, other), known, "MR", ["T1w"]))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["mr_single_subject_t1", "mr_avg152_t1", "mr_avg152_t2"])
def test_real_heads_have_a_skull_and_their_brains_have_none(name: str) -> None:
    """The brain is what lies within the bone of the CT on the same grid."""
    hu = read_volume(REAL / "ct_template_hu.nii.gz").numpy()[0]
    soft = ndimage.binary_fill_holes(hu > -300) & ~ndimage.binary_dilation(hu > 250)
    labels, _ = ndimage.label(ndimage.binary_erosion(soft, iterations=3))
    inner = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    brain = ndimage.binary_dilation(inner, iterations=3) & soft
    volume = read_volume(REAL / f"{name}.nii.gz")
    dips = [
        survey.anatomy.head.skull_dip
        for survey in map(measure_volume, (volume, volume * torch.from_numpy(brain)[None]))
        if survey.anatomy and survey.anatomy.head
    ]
    assert dips[0] > 2 * SKULL_DIP > 2 * dips[1]


def test_jumping_slices_are_found_along_head_foot_whatever_the_axes() -> None:
    random = np.random.default_rng(0)
    ct = np.full((20, 20, 30), -1000.0)
    ct[4:16, 4:16] = 40 + 2 * np.arange(30) + random.normal(0, 3, (12, 12, 30))
    assert jumping_slices(ct, Grid(ct.shape, np.eye(4))) == []
    ct[4:16, 4:16, 11] += 60
    found = jumping_slices(ct, Grid(ct.shape, np.eye(4)))
    assert 11 in found and set(found) <= {10, 11, 12}
    turned = np.moveaxis(ct, 2, 0)
    assert jumping_slices(turned, Grid(turned.shape, np.eye(4)[:, [2, 0, 1, 3]])) == found


def test_share_above_the_threshold() -> None:
    hu, body = np.zeros((10, 10, 10)), np.zeros((10, 10, 10), bool)
    body[:5] = True
    hu[:1] = 101.0
    hu[5:] = 500.0
    assert share_above(hu, body) == pytest.approx(0.2)


def test_a_checkpoint_describes_its_cohort(run: Path) -> None:
    from medcyclegan.training.checkpoint import load_checkpoint

    domains = load_checkpoint(run)["domains"]
    assert [len(domains[d]["cohort"]) for d in ("a", "b")] == [2, 2]
