"""Convolutions of width 3 with fewer multiplications; equal to the plain ones up to rounding.

Along one axis, a *group* of neighboring outputs needs 3 multiplications each in the plain way. Three *schemes* need
fewer:

- *pairs* (Winograd 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, F(2, 3)), 4 for
  two outputs: the voxels r0 to r3 and the kernel (u, v, w) give the products

      m0 = (r0 - r2) u,  m1 = (r1 + r2) (u + v + w) / 2,  m2 = (r2 - r1) (u - v + w) / 2,  m3 = (r3 - r1) w

  and y0 = m0 + m1 + m2 = r0 u + r1 v + r2 w,  y1 = m1 - m2 + m3 = r1 u + r2 v + r3 w.

- *fours* (the same, F(4, 3)), 6 for four outputs, from the points 0, 1, -1, 2 and -2. Sums and differences with factors
  up to 8 cost about a digit more than pairs do, which float32 has to spare and bfloat16 has not.

- *doubling*, 3 for two outputs: where every voxel is repeated before the convolution, the outputs at the two copies of
  b, between a and c, are a u + b (v + w) and b (u + v) + c w. With

      m0 = (a - b) u,  m1 = b (u + v + w),  m2 = (c - b) w

  it is y0 = m0 + m1 and y1 = m1 + m2, and the doubled image is never made.

Applied to one axis after the other, they leave 4 (pairs) or 2.25 (fours and doubling) of 9 multiplications per output
in 2D, and 8 or 3.4 of 27 in 3D. Images are reflected at their borders, which costs nothing here: a voxel beyond the
border is one that is there.

The sums before and after the products go through memory, so this pays where channels are many. Images lie with their
channels last: the products of all channels and all places are then one batch of matrix products, and gradients are the
adjoints of the same steps. In float32 the result is as close to the exact one as the plain way's. In bfloat16 the sums
are rounded too: a convolution comes out with about three times the error of the plain way in 2D (0.7 % of its result
instead of 0.2 %).
"""

from __future__ import annotations

import math
import threading
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Of products that exist at once: they fit into the last-level cache, and in 3D into memory.
SLAB_BYTES = 4 * 2**20
SCRATCH_BYTES = 32 * 2**20  # of the largest piece of memory that a thread keeps for the next call
SMALLEST_FOR_FOURS = 8  # voxels; of fewer too many would be made up to fill the last group


Kernels = dict[tuple[type, torch.dtype], Tensor]  # transformed weights, by scheme and type


def reflected_convolution(x: Tensor, weight: Tensor, known: Kernels | None = None) -> Tensor:
    """`conv(reflect(x), weight)` with one voxel of padding; under autocast in its type.

    Args:
        x: (B, C, *spatial), at least 2 voxels along each of two or three axes.
        weight: (O, C, 3, 3) or (O, C, 3, 3, 3).
        known: kernels made of these same weights before; others are added. Of no effect outside of inference mode.

    Returns:
        (B, O, *spatial), channels last.
    """
    x = _as_computed(x)
    scheme = _Pairs if x.dtype.itemsize < 4 or min(x.shape[2:]) < SMALLEST_FOR_FOURS else _Fours
    # Outputs come in groups: what is missing to whole ones is reflected, and the outputs in its place are dropped.
    missing = [-n % scheme.OUTPUTS for n in x.shape[2:]]
    if any(missing):
        x = F.pad(x, [pad for more in reversed(missing) for pad in (0, more)], mode="reflect")
    result: Tensor = _Convolution.apply(x, weight, scheme, known)
    for axis, more in enumerate(missing, start=2):
        if more:  # the gradient of a whole axis would be copied, too
            result = result.narrow(axis, 0, result.shape[axis] - more)
    return result


def doubled_convolution(x: Tensor, weight: Tensor, known: Kernels | None = None) -> Tensor:
    """`conv(reflect(double(x)), weight)`, nearest-neighbor doubling, one voxel of padding; under autocast in its type.

    Args:
        x: (B, C, *spatial).
        weight: (O, C, 3, 3) or (O, C, 3, 3, 3).
        known: as for `reflected_convolution`.

    Returns:
        (B, O, *doubled), channels last.
    """
    result: Tensor = _Convolution.apply(_as_computed(x), weight, _Doubling, known)
    return result


class _Scratch(threading.local):
    """Memory that a thread writes products into, again and again: new memory costs as much time as the sums.

    Only up to `SCRATCH_BYTES` a name, and none where tensors have no values (memory is predicted with those).
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, like: Tensor, shape: list[int]) -> Tensor:
        size = math.prod(shape) * like.element_size()
        if size > SCRATCH_BYTES or isinstance(like, FakeTensor):
            return like.new_empty(shape)
        buffer = self.buffers.get(name)
        if buffer is None or len(buffer) < size or buffer.device != like.device:
            with torch.inference_mode(False):  # what is made in that mode cannot be written to outside of it
                buffer = self.buffers[name] = torch.empty(size, dtype=torch.uint8, device=like.device)
        return buffer[:size].view(like.dtype).view(shape)


_scratch = _Scratch()


def _as_computed(x: Tensor) -> Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


_Sums = tuple[tuple[float, float, float], ...]


class _Scheme(Protocol):
    """The linear maps of a scheme along one axis, and their adjoints (`back_...`).

    Products come first: `split` turns (..., voxels, ...) into (products, ..., groups, ...), and `merge` turns that into
    (..., OUTPUTS groups, ...) again; both write into a tensor of that shape. `axis` is that of the voxels, without the
    products.
    """

    KERNELS: _Sums  # of u, v and w in what each product is multiplied with
    INPUTS: int  # of a group, without those that it shares with the next ones
    OUTPUTS: int

    @staticmethod
    def split(x: Tensor, axis: int, products: Tensor) -> None: ...

    @staticmethod
    def back_split(products: Tensor, axis: int) -> Tensor: ...

    @staticmethod
    def merge(products: Tensor, axis: int, y: Tensor) -> None: ...

    @staticmethod
    def back_merge(y: Tensor, axis: int) -> Tensor: ...


class _Pairs:
    KERNELS: _Sums = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
    INPUTS = OUTPUTS = 2

    @staticmethod
    def split(x: Tensor, axis: int, products: Tensor) -> None:
        r1, r2 = _parts(x, axis, 2)  # r0 is the r2 of the pair before, r3 the r1 of the next
        _difference(r2, products[0], axis, first=True)
        torch.add(r1, r2, out=products[1])
        torch.sub(r2, r1, out=products[2])
        _difference(r1, products[3], axis, first=False)

    @staticmethod
    def back_split(products: Tensor, axis: int) -> Tensor:
        m0, m1, m2, m3 = products
        x = _empty(m0, axis, 2 * m0.shape[axis])
        r1, r2 = _parts(x, axis, 2)
        torch.sub(m1, m2, out=r1)
        torch.add(m1, m2, out=r2)
        _add_difference(m0, r2, axis, first=True)
        _add_difference(m3, r1, axis, first=False)
        return x

    @staticmethod
    def merge(products: Tensor, axis: int, y: Tensor) -> None:
        m0, m1, m2, m3 = products
        y0, y1 = _parts(y, axis, 2)
        torch.add(m0, m1, out=y0).add_(m2)
        torch.sub(m1, m2, out=y1).add_(m3)

    @staticmethod
    def back_merge(y: Tensor, axis: int) -> Tensor:
        y0, y1 = _parts(y, axis, 2)
        products = y.new_empty(4, *y0.shape)
        products[0].copy_(y0)
        torch.add(y0, y1, out=products[1])
        torch.sub(y0, y1, out=products[2])
        products[3].copy_(y1)
        return products


class _Fours:
    KERNELS: _Sums = (
        (1 / 4, 0.0, 0.0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0.0, 0.0, 1.0),
    )
    INPUTS = OUTPUTS = 4

    @staticmethod
    def split(x: Tensor, axis: int, products: Tensor) -> None:
        r1, r2, r3, r4 = _parts(x, axis, 4)  # r0 is the r4 of the group before, r5 the r1 of the next
        m0, m1, m2, m3, m4, m5 = products
        even, odd = torch.sub(r4, r2, alpha=4), torch.sub(r3, r1, alpha=4)
        torch.add(even, odd, out=m1)
        torch.sub(even, odd, out=m2)
        torch.sub(even, r2, out=m0)
        _add_neighbor(m0, r4, r2, axis, 4, before=True)  # 4 r0 - 5 r2 + r4
        torch.add(odd, r3, alpha=4, out=m5).neg_()
        _add_neighbor(m5, r1, r3, axis, 1, before=False)  # 4 r1 - 5 r3 + r5
        torch.sub(r4, r2, out=even)
        torch.sub(r3, r1, out=odd)
        torch.add(even, odd, alpha=2, out=m3)
        torch.sub(even, odd, alpha=2, out=m4)

    @staticmethod
    def back_split(products: Tensor, axis: int) -> Tensor:
        m0, m1, m2, m3, m4, m5 = products
        x = _empty(m0, axis, 4 * m0.shape[axis])
        r1, r2, r3, r4 = _parts(x, axis, 4)
        ones, twos = m1 + m2, m3 + m4
        torch.add(m0, ones, out=r4).add_(twos)
        torch.mul(m0, -5, out=r2).sub_(ones, alpha=4).sub_(twos)
        torch.sub(m1, m2, out=ones)
        torch.sub(m3, m4, out=twos)
        torch.add(ones, twos, alpha=2, out=r3).sub_(m5, alpha=5)
        torch.mul(m5, 4, out=r1).sub_(ones, alpha=4).sub_(twos, alpha=2)
        _back_add_neighbor(m0, r4, r2, axis, 4, before=True)
        _back_add_neighbor(m5, r1, r3, axis, 1, before=False)
        return x

    @staticmethod
    def merge(products: Tensor, axis: int, y: Tensor) -> None:
        m0, m1, m2, m3, m4, m5 = products
        y0, y1, y2, y3 = _parts(y, axis, 4)
        ones, twos = m1 + m2, m3 + m4
        torch.add(m0, ones, out=y0).add_(twos)
        torch.add(ones, twos, alpha=4, out=y2)
        torch.sub(m1, m2, out=ones)
        torch.sub(m3, m4, out=twos)
        torch.add(ones, twos, alpha=2, out=y1)
        torch.add(ones, twos, alpha=8, out=y3).add_(m5)

    @staticmethod
    def back_merge(y: Tensor, axis: int) -> Tensor:
        y0, y1, y2, y3 = _parts(y, axis, 4)
        products = y.new_empty(6, *y0.shape)
        m0, m1, m2, m3, m4, m5 = products
        m0.copy_(y0)
        even, odd = y0 + y2, y1 + y3
        torch.add(even, odd, out=m1)
        torch.sub(even, odd, out=m2)
        torch.add(y0, y2, alpha=4, out=even)
        torch.add(y1, y3, alpha=4, out=odd)
        torch.add(even, odd, alpha=2, out=m3)
        torch.sub(even, odd, alpha=2, out=m4)
        m5.copy_(y3)
        return products


class _Doubling:
    KERNELS: _Sums = ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    INPUTS, OUTPUTS = 1, 2

    @staticmethod
    def split(x: Tensor, axis: int, products: Tensor) -> None:
        _difference(x, products[0], axis, first=True)
        products[1].copy_(x)
        _difference(x, products[2], axis, first=False)

    @staticmethod
    def back_split(products: Tensor, axis: int) -> Tensor:
        m0, m1, m2 = products
        x = m1.clone()
        _add_difference(m0, x, axis, first=True)
        _add_difference(m2, x, axis, first=False)
        return x

    @staticmethod
    def merge(products: Tensor, axis: int, y: Tensor) -> None:
        m0, m1, m2 = products
        y0, y1 = _parts(y, axis, 2)
        torch.add(m0, m1, out=y0)
        torch.add(m1, m2, out=y1)

    @staticmethod
    def back_merge(y: Tensor, axis: int) -> Tensor:
        y0, y1 = _parts(y, axis, 2)
        products = y.new_empty(3, *y0.shape)
        products[0].copy_(y0)
        torch.add(y0, y1, out=products[1])
        products[2].copy_(y1)
        return products


class _Convolution(torch.autograd.Function):
    """(B, C, *spatial) and (O, C, 3, ...) to (B, O, *), by a scheme.

    The first axis is split as a whole; the others, where most of the memory would go, a slab of groups at a time. What
    the input is split into is made again in the backward pass and not kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scheme: type[_Scheme], known: Kernels | None) -> Tensor:
        x = x.movedim(1, -1).contiguous()
        if known is None or not torch.is_inference_mode_enabled():
            known = {}
        if (scheme, x.dtype) not in known:
            known[scheme, x.dtype] = _kernels(weight, scheme, x.dtype)
        kernels = known[scheme, x.dtype]
        ctx.scheme = scheme
        ctx.save_for_backward(x, weight, kernels)
        rows = _split(x, 1, scheme, "rows")
        outputs = [scheme.OUTPUTS * n // scheme.INPUTS for n in x.shape[1:-1]]
        result = x.new_empty(len(x), *outputs, len(weight))
        for groups in _slabs(rows, weight, scheme):
            split = _split_rest(rows[:, :, groups], scheme)
            y = _scratch("products", x, [*split.shape[:-1], len(weight)])
            torch.bmm(_flat(split), kernels.transpose(1, 2), out=_flat(y))
            for axis in reversed(range(1, x.dim() - 2)):
                shape = list(y.shape[1:])
                shape[1 + 2 * axis] *= scheme.OUTPUTS
                merged = _scratch(f"merged {axis}", x, shape)
                scheme.merge(y, 1 + 2 * axis, merged)
                y = merged
            scheme.merge(y, 1, result[:, scheme.OUTPUTS * groups.start : scheme.OUTPUTS * groups.stop])
        return result.movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, kernels = ctx.saved_tensors
        scheme: type[_Scheme] = ctx.scheme
        rows = _split(x, 1, scheme, "rows")
        to_rows: list[Tensor] = []
        found: Tensor | None = None
        for groups in _slabs(rows, weight, scheme):
            y = gradient.movedim(1, -1)[:, scheme.OUTPUTS * groups.start : scheme.OUTPUTS * groups.stop].contiguous()
            for axis in range(x.dim() - 2):
                y = scheme.back_merge(y, 1 + 2 * axis)
            products = _flat(y)
            if ctx.needs_input_grad[1]:
                part = torch.bmm(products.transpose(1, 2), _flat(_split_rest(rows[:, :, groups], scheme)))
                # More than one are added in the type of the weights: there may be many.
                found = part if found is None else found.to(weight.dtype).add_(part)
            if ctx.needs_input_grad[0]:
                split = torch.bmm(products, kernels).view(*y.shape[:-1], -1)
                for axis in reversed(range(1, x.dim() - 2)):
                    split = scheme.back_split(split, 1 + 2 * axis)
                to_rows.append(split)
        to_x = None
        if to_rows:
            to_x = scheme.back_split(to_rows[0] if len(to_rows) == 1 else torch.cat(to_rows, 2), 1).movedim(-1, 1)
        return to_x, None if found is None else _back_kernels(found, weight, scheme), None, None


def _slabs(rows: Tensor, weight: Tensor, scheme: type[_Scheme]) -> list[slice]:
    """Parts of the groups of (products, B, groups, ..., C) of like size, with products of at most `SLAB_BYTES` each."""
    groups, axes = rows.shape[2], weight.dim() - 3
    outputs, channels = weight.shape[:2]
    growth = (len(scheme.KERNELS) / scheme.INPUTS) ** axes * max(1, outputs / channels)
    parts = min(groups, math.ceil(rows.numel() * rows.element_size() * growth / SLAB_BYTES))
    size = -(-groups // parts)
    return [slice(start, min(start + size, groups)) for start in range(0, groups, size)]


def _split(x: Tensor, axis: int, scheme: type[_Scheme], name: str) -> Tensor:
    shape = [len(scheme.KERNELS), *x.shape]
    shape[1 + axis] //= scheme.INPUTS
    products = _scratch(name, x, shape)
    scheme.split(x, axis, products)
    return products


def _split_rest(rows: Tensor, scheme: type[_Scheme]) -> Tensor:
    """(products, B, groups, *voxels, C) to (products, ..., B, *groups, C), the products of the last axis first."""
    for axis in range(1, rows.dim() - 3):
        rows = _split(rows, 1 + 2 * axis, scheme, f"split {axis}")
    return rows


def _flat(split: Tensor) -> Tensor:
    """(products, ..., B, *groups, C) to (products of all axes, B groups, C)."""
    dims = (split.dim() - 2) // 2
    return split.view(split.shape[:dims].numel(), -1, split.shape[-1])


def _kernels(weight: Tensor, scheme: type[_Scheme], dtype: torch.dtype) -> Tensor:
    """(O, C, 3, ...) to (products of all axes, O, C) in the order of `_split_rest`, summed in the type of `weight`."""
    dims = weight.dim() - 2
    taps = _taps(weight).reshape(3**dims, -1)
    return (_matrix(scheme, weight, dims) @ taps).to(dtype).view(-1, *weight.shape[:2])


def _back_kernels(found: Tensor, weight: Tensor, scheme: type[_Scheme]) -> Tensor:
    """The adjoint of `_kernels`, in the type and memory format of `weight`."""
    gradient = torch.empty_like(weight)
    taps = _taps(gradient)
    taps.copy_((_matrix(scheme, found, weight.dim() - 2).t() @ found.flatten(1)).view(taps.shape))
    return gradient


def _taps(weight: Tensor) -> Tensor:
    """(O, C, 3, ...) seen as (3, ..., O, C), the last axis first."""
    return weight.permute(*reversed(range(2, weight.dim())), 0, 1)


def _matrix(scheme: type[_Scheme], like: Tensor, dims: int) -> Tensor:
    """(products of all axes, 3**dims): from the taps of a kernel to what the products are multiplied with."""
    one = like.new_tensor(scheme.KERNELS)
    matrix = one
    for _ in range(dims - 1):
        matrix = torch.kron(matrix, one)
    return matrix


def _parts(x: Tensor, axis: int, size: int) -> tuple[Tensor, ...]:
    """The first voxels of all groups of a size along an axis, the second ones, and so on."""
    return x.unflatten(axis, (x.shape[axis] // size, size)).unbind(axis + 1)


def _empty(like: Tensor, axis: int, length: int) -> Tensor:
    return like.new_empty([length if n == axis else size for n, size in enumerate(like.shape)])


def _add_neighbor(into: Tensor, x: Tensor, at_border: Tensor, axis: int, factor: float, before: bool) -> None:
    """into[i] += factor * x[i - 1] (`before`) or x[i + 1]; where there is none, `at_border` is in its place."""
    n = x.shape[axis]
    into.narrow(axis, int(before), n - 1).add_(x.narrow(axis, int(not before), n - 1), alpha=factor)
    border = 0 if before else n - 1
    into.narrow(axis, border, 1).add_(at_border.narrow(axis, border, 1), alpha=factor)


def _back_add_neighbor(into: Tensor, x: Tensor, at_border: Tensor, axis: int, factor: float, before: bool) -> None:
    """The adjoint of `_add_neighbor`, added to `x` and `at_border`."""
    n = x.shape[axis]
    x.narrow(axis, int(not before), n - 1).add_(into.narrow(axis, int(before), n - 1), alpha=factor)
    border = 0 if before else n - 1
    at_border.narrow(axis, border, 1).add_(into.narrow(axis, border, 1), alpha=factor)


def _difference(x: Tensor, into: Tensor, axis: int, first: bool) -> None:
    """into[i] = x[i - 1] - x[i] (`first`) or x[i + 1] - x[i], and 0 at the border, where there is no neighbor."""
    n = x.shape[axis]
    before, after = x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)
    if first:
        torch.sub(before, after, out=into.narrow(axis, 1, n - 1))
    else:
        torch.sub(after, before, out=into.narrow(axis, 0, n - 1))
    into.narrow(axis, 0 if first else n - 1, 1).zero_()


def _add_difference(products: Tensor, into: Tensor, axis: int, first: bool) -> None:
    """The adjoint of `_difference`, added to `into`."""
    n = products.shape[axis]
    inner = products.narrow(axis, int(first), n - 1)
    sign = 1 if first else -1
    into.narrow(axis, 0, n - 1).add_(inner, alpha=sign)
    into.narrow(axis, 1, n - 1).sub_(inner, alpha=sign)
