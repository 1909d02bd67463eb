"""Independent parts of a step, side by side on the cores of a processor.

Torch splits every single operation over the cores, and the small convolutions of a 2D training gain little from that:
1.25 to 1.35 times on two cores, measured. The two directions of a CycleGAN share nothing but the weights, so each goes
forward and backward in a *lane*, a thread of its own with its share of the cores. Gradients are computed apart and
added in a fixed order, so that the result is the same to the last bit, whatever the threads' timing.

Random numbers are what lanes would draw in an order of chance, and running statistics (batch norm, say) what they would
write so. The first step runs the parts in turn, and where it finds that they do either, they stay in turn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import torch
from torch import Tensor

from medcyclegan.training.objectives import Images, Losses, Part

Gradients = list[Tensor | None]
Done = tuple[Losses, Images, Gradients]


class Lanes:
    """Computes the gradients of a step, in lanes where that pays: on processors, with two cores or more.

    Args:
        device: where the networks are.
        bf16: compute the losses under bfloat16 autocast.
        buffers: of the networks, which a forward pass may write.
    """

    def __init__(self, device: torch.device, bf16: bool = False, buffers: Sequence[Tensor] = ()) -> None:
        self.device = device
        self.bf16 = bf16
        self.buffers = buffers
        self.cores = torch.get_num_threads() if device.type == "cpu" else 1
        self.together: bool | None = None if self.cores > 1 else False  # None: not known yet whether parts may be
        self._threads: ThreadPoolExecutor | None = None

    def differentiate(
        self, parts: Sequence[Part], parameters: Sequence[Tensor], share: float = 1.0, in_turn: bool = False
    ) -> tuple[Losses, Images]:
        """Add the gradients of `share` times the sum of all losses to the parameters' `grad`.

        Args:
            parts: independent parts of the sum, none of which uses what another computes.
            parameters: what the losses are differentiated by.
            share: of this batch in what is averaged.
            in_turn: compute the parts one after the other with all cores, because they draw random numbers.

        Returns:
            The losses and images of all parts, detached.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if in_turn or self.cores == 1 or len(parts) == 1:
            return _joined([self._accumulate(part, share) for part in parts])
        before = torch.get_rng_state()
        held = [buffer.clone() for buffer in self.buffers] if self.together is None else []
        done = self._run([partial(self._differentiate, part, trained, share) for part in parts])
        drawn = not torch.equal(before, torch.get_rng_state())
        if drawn and self.together:
            warnings.warn(
                "the losses drew random numbers that they did not draw in the first step; from now on the directions "
                "are computed one after the other, which is slower. This one step may not be repeatable exactly",
                stacklevel=2,
            )
        if drawn:
            self.together = False
        elif self.together is None:
            self.together = all(torch.equal(new, old) for new, old in zip(self.buffers, held, strict=True))
        for parameter, *gradients in zip(trained, *(gradients for _, _, gradients in done), strict=True):
            for gradient in gradients:
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = laid_out_like(parameter, gradient)
                else:
                    parameter.grad += gradient
        return _joined([(losses, images) for losses, images, _ in done])

    def close(self) -> None:
        """End the threads; they come back when they are needed."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def _run(self, calls: Sequence[Callable[[], Done]]) -> list[Done]:
        """The results in order. In turn too every call is a thread's, so that the numbers are the same to the bit."""
        if self._threads is None:
            # Only now: data loaders start their processes before the first step, and threads do not survive that.
            lane = max(1, self.cores // 2)
            self._threads = ThreadPoolExecutor(2, "lane", initializer=torch.set_num_threads, initargs=(lane,))
        if not self.together:
            return [self._threads.submit(call).result() for call in calls]
        futures: list[Future[Done]] = [self._threads.submit(call) for call in calls]
        wait(futures)
        return [future.result() for future in futures]

    def _autocast(self) -> torch.autocast:
        # Autocast belongs to a thread, but its cache of cast weights to all: a cached cast would tie graphs together.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=self.cores == 1)

    def _accumulate(self, part: Part, share: float) -> tuple[Losses, Images]:
        with self._autocast():
            losses, images = part()
        (share * _sum(losses)).backward()
        return _detached(losses), _detached(images)

    def _differentiate(self, part: Part, parameters: Sequence[Tensor], share: float) -> Done:
        with self._autocast():
            losses, images = part()
        gradients: Gradients = list(torch.autograd.grad(share * _sum(losses), parameters, allow_unused=True))
        return _detached(losses), _detached(images), gradients


def _sum(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _joined(results: Sequence[tuple[Losses, Images]]) -> tuple[Losses, Images]:
    losses: Losses = {}
    images: Images = {}
    for some, made in results:
        losses |= some
        images |= made
    return losses, images


def laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The same values in the parameter's memory format.

    Fused optimizers go through memory and not through indices: a gradient or a moment that lies there in another order
    than its weight would be given to other elements, silently.
    """
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
