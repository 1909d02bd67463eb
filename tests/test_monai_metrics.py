"""The MONAI metrics give the scores of `evaluate`, batch by batch and inside an evaluator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from medcyclegan.evaluation.case import METRICS
from medcyclegan.evaluation.monai_metrics import MaskedMetric, MaskedMetricHandler
from medcyclegan.evaluation.protocol import protocol


def batch(count: int = 3, shape: tuple[int, int, int] = (16, 15, 14)) -> tuple[torch.Tensor, ...]:
    random = np.random.default_rng(0)
    reference = random.uniform(-1000, 1500, (count, 1, *shape))
    synthetic = reference + random.normal(0, 80, reference.shape)
    mask = np.zeros(reference.shape, np.uint8)
    mask[..., 3:12, 3:12, 3:12] = 1
    return torch.from_numpy(synthetic), torch.from_numpy(reference), torch.from_numpy(mask)


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_those_of_evaluate(name: str) -> None:
    synthetic, reference, mask = batch(2)
    limits = (protocol("synthrad2023").low, protocol("synthrad2023").high)
    expected = [METRICS[name](*(t[i, 0].numpy() for t in (reference, synthetic, mask)), limits).value for i in (0, 1)]
    metric = MaskedMetric(name, protocol="synthrad2023")
    assert metric(y_pred=synthetic, y=reference, mask=mask).flatten().tolist() == pytest.approx(expected)
    assert float(metric.aggregate()) == pytest.approx(np.mean(expected))


def test_batches_accumulate_and_lists_may_differ_in_size() -> None:
    metric = MaskedMetric("mae")
    synthetic, reference, mask = batch(3)
    metric(synthetic[:2], reference[:2], mask=mask[:2])
    metric([MetaTensor(synthetic[2])], [MetaTensor(reference[2])], mask=[mask[2]])
    by_hand = (synthetic - reference).abs()[mask > 0].reshape(3, -1).mean(1)
    assert metric.get_buffer().flatten().tolist() == pytest.approx(by_hand.tolist())
    metric.reset()
    small = batch(1, (9, 9, 9))
    metric([synthetic[0], small[0][0]], [reference[0], small[1][0]])
    whole = [float((synthetic[0] - reference[0]).abs().mean()), float((small[0] - small[1]).abs().mean())]
    assert float(metric.aggregate()) == pytest.approx(np.mean(whole))


def test_an_undefined_score_is_left_out_and_told() -> None:
    synthetic, reference, mask = batch(2)
    mask[1] = 0
    metric = MaskedMetric("mae", get_not_nans=True)
    with pytest.warns(UserWarning, match="mae of image 1 is undefined: the mask is empty"):
        scores = metric(synthetic, reference, mask=mask)
    assert math.isnan(scores[1, 0])
    value, count = metric.aggregate()
    assert (float(value), int(count)) == (pytest.approx(float(scores[0, 0])), 1)


def test_the_handler_works_in_an_engine() -> None:
    synthetic, reference, mask = batch(3)
    engine = Engine(lambda _, i: {"pred": synthetic[i] / 1000, "label": reference[i] / 1000, "mask": mask[i]})

    def to_hu(output: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return output["pred"][None] * 1000, output["label"][None] * 1000, output["mask"][None]

    for name in ("mae", "ssim"):
        MaskedMetricHandler(MaskedMetric(name), output_transform=to_hu).attach(engine, name)
    for _ in range(2):  # a second run starts anew
        state = engine.run([0, 1, 2], max_epochs=1)
    direct = MaskedMetric("mae")
    direct(synthetic, reference, mask=mask)
    assert state.metrics["mae"] == pytest.approx(float(direct.aggregate()))
    assert state.metric_details["ssim"].shape == (3, 1)
    with pytest.raises(ValueError, match="prediction, reference, mask"):
        MaskedMetricHandler(MaskedMetric("mae")).update((synthetic, reference))


def test_wrong_arguments_are_refused() -> None:
    synthetic, reference, mask = batch(2)
    with pytest.raises(ValueError, match="one of mae, psnr"):
        MaskedMetric("fid")
    metric = MaskedMetric("mae")
    for arguments in (
        (synthetic, reference[:1], mask),
        (synthetic, reference, mask[:, :, :-1]),
        (synthetic[0], reference[0], mask[0]),
        (synthetic, None, mask),
        ([synthetic[0]], [reference[0], reference[1]], None),
    ):
        with pytest.raises(ValueError):
            metric(arguments[0], arguments[1], mask=arguments[2])
