"""The masked metrics as MONAI metrics and Ignite handlers, for any evaluator.

Tensors are (B, 1, X, Y, Z) in HU with a mask of the same shape, or lists of (1, X, Y, Z); channels are scored one by
one. A network's output is turned into HU by the `output_transform` of the handler. Scores are those of `evaluate`,
computed in float64 where the tensors are; MAE and PSNR move them to the processor.

Examples:
    >>> metric = MaskedMetric("mae")
    >>> metric(y_pred=sct, y=ct, mask=body)  # doctest: +SKIP
    >>> metric.aggregate()  # doctest: +SKIP

    In an evaluator, the handler takes (prediction, reference, mask) from the engine's output:

    >>> MaskedMetricHandler(
    ...     MaskedMetric("ssim"), output_transform=lambda out: (hu(out["pred"]), hu(out["label"]), out["mask"])
    ... ).attach(evaluator, "ssim")  # doctest: +SKIP
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric, do_metric_reduction
from monai.utils import MetricReduction

from medcyclegan.evaluation.case import METRICS
from medcyclegan.evaluation.metrics.ms_ssim import ms_ssim
from medcyclegan.evaluation.metrics.ssim import ssim
from medcyclegan.evaluation.protocol import protocol as protocol_named


class MaskedMetric(CumulativeIterationMetric):
    """One metric of `evaluate` over the voxels of a mask.

    An undefined score is nan, with its reason as a warning; the reduction leaves it out and counts what it kept.

    Args:
        name: a key of `medcyclegan.evaluation.case.METRICS`: mae, psnr, ssim, ms_ssim, me, rmse, ncc,
            mutual_information, gradient_similarity or wasserstein.
        protocol: whose HU range is used.
        reduction: as for MONAI's metrics; "mean" is over images, each counting the same.
        get_not_nans: whether `aggregate` also gives the number of scores that are defined.

    Raises:
        ValueError: there is no metric of that name.
    """

    def __init__(
        self,
        name: str,
        *,
        protocol: str = "native",
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__()
        if name not in METRICS:
            raise ValueError(f"a masked metric is one of {', '.join(METRICS)}, got {name!r}")
        self.name = name
        chosen = protocol_named(protocol)
        self.limits = (chosen.low, chosen.high)
        self.reduction = reduction
        self.get_not_nans = get_not_nans

    def __call__(self, y_pred: Any, y: Any = None, mask: Any = None, **kwargs: Any) -> Any:
        """Score one batch and keep the scores.

        Args:
            y_pred: (B, C, X, Y, Z), or a list of (C, X, Y, Z): synthetic CTs in HU.
            y: the same of the reference.
            mask: (B, 1, X, Y, Z) or (B, C, X, Y, Z), or a list without B; voxels above 0 count. None for all voxels.

        Returns:
            (B, C) scores.
        """
        if y is None:
            raise ValueError("a masked metric needs the reference y")
        if isinstance(y_pred, list | tuple) or isinstance(y, list | tuple):
            masks = [None] * len(y_pred) if mask is None else list(mask)
            if not len(y_pred) == len(y) == len(masks):
                raise ValueError(f"lists of one length are needed, got {len(y_pred)}, {len(y)} and {len(masks)}")
            # Images of a list may differ in size, and each goes with its own mask.
            scores = torch.cat(
                [
                    self._compute_tensor(p.detach()[None], r.detach()[None], mask=None if m is None else m[None])
                    for p, r, m in zip(y_pred, y, masks, strict=True)
                ]
            )
            self.extend(scores)
            return scores
        return super().__call__(y_pred, y, mask=mask, **kwargs)

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, mask: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        if y is None or y_pred.ndim != 5 or y_pred.shape != y.shape:
            raise ValueError(
                f"(B, C, X, Y, Z) of one shape are needed, got {tuple(y_pred.shape)} and "
                f"{None if y is None else tuple(y.shape)}"
            )
        if mask is not None:
            if mask.shape[2:] != y.shape[2:] or mask.shape[0] != y.shape[0] or mask.shape[1] not in (1, y.shape[1]):
                raise ValueError(f"a mask for {tuple(y.shape)} has its shape or one channel, got {tuple(mask.shape)}")
            mask = mask.detach().expand(y.shape)
        device = str(y_pred.device)
        scores = np.empty(y.shape[:2])
        for index in np.ndindex(scores.shape):
            r, p = (_array(part[index]) for part in (y, y_pred))
            m = None if mask is None else _array(mask[index])
            if self.name in ("ssim", "ms_ssim"):
                score = (ssim if self.name == "ssim" else ms_ssim)(r, p, m, self.limits, device=device)
            else:
                score = METRICS[self.name](r, p, m, self.limits)
            if np.isnan(score.value):
                warnings.warn(f"{self.name} of image {index[0]} is undefined: {score.reason}", stacklevel=4)
            scores[index] = score.value
        return torch.from_numpy(scores).to(y_pred.device)

    def aggregate(self, reduction: MetricReduction | str | None = None) -> Any:
        """The scores of all batches so far, reduced; with the number of defined ones if `get_not_nans`."""
        buffer = self.get_buffer()
        if not isinstance(buffer, torch.Tensor):
            raise ValueError("nothing has been scored yet")
        found, not_nans = do_metric_reduction(buffer, reduction or self.reduction)
        return (found, not_nans) if self.get_not_nans else found


class MaskedMetricHandler(IgniteMetricHandler):
    """Ignite handler of a `MaskedMetric`; the result goes to `engine.state.metrics`.

    Args:
        metric: what to compute.
        output_transform: from the engine's output to (prediction, reference, mask) in HU, each as `MaskedMetric` takes
            it; the mask may be None.
        save_details: keep the score of every image in `engine.state.metric_details`.
    """

    def __init__(
        self,
        metric: MaskedMetric,
        output_transform: Callable[[Any], Sequence[Any]] = lambda output: output,
        save_details: bool = True,
    ) -> None:
        super().__init__(metric_fn=metric, output_transform=output_transform, save_details=save_details)

    def update(self, output: Sequence[Any]) -> None:
        """Score one batch.

        Raises:
            ValueError: `output` is not (prediction, reference, mask).
        """
        if len(output) != 3:
            raise ValueError(f"output_transform must give (prediction, reference, mask), got {len(output)} parts")
        self._is_reduced = False
        prediction, reference, mask = output
        self.metric_fn(prediction, reference, mask=mask)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Plain NumPy, whatever kind of tensor and device."""
    array: np.ndarray = torch.as_tensor(tensor).detach().cpu().numpy()
    return np.asarray(array)
