"""Translation as MONAI transforms, for any `Compose`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple


class _Translated(Protocol):
    def to_metatensor(self) -> MetaTensor: ...


class TranslateImage(Transform):
    """Translates a MetaTensor: in goes a source volume as read, out comes the result on the same grid.

    For a model of several channels, (C, X, Y, Z) goes in, its channels in the model's order.

    Args:
        translator: what `medcyclegan.load_translator` gives.

    Examples:
        >>> mr = LoadImage(ensure_channel_first=True)("mr.nii.gz")  # doctest: +SKIP
        >>> sct = TranslateImage(load_translator("runs/brain"))(mr)  # doctest: +SKIP
    """

    def __init__(self, translator: Callable[..., _Translated]) -> None:
        self.translator = translator

    def __call__(self, data: MetaTensor | Sequence[MetaTensor], mask: MetaTensor | None = None) -> MetaTensor:
        """(1, X, Y, Z) or (X, Y, Z) with its affine -> (1, X, Y, Z) with the same affine and metadata; CT in HU.

        `mask` is the body, (1, X, Y, Z) or (X, Y, Z) on the same grid and above 0 inside; without one it is found from
        the intensities.

        What was done to the source before remains recorded, so that a `Compose` can be inverted. MONAI pads with 0
        where it inverts a crop, which is water in HU.

        A sequence of these is several channels, which need not share a grid; the result is on the first one's.
        """
        first = data if isinstance(data, MetaTensor) else data[0]
        known = {} if mask is None else {"body": _body(mask, first)}
        result = self.translator(data, **known).to_metatensor()
        result.meta = {**first.meta, **result.meta}
        result.applied_operations = deepcopy(first.applied_operations)
        return result


class TranslateImaged(MapTransform):
    """Translates the volumes at `keys`; the dictionary form of `TranslateImage`.

    Args:
        keys: keys of MetaTensors with their affine. With a model of several channels, either one key that holds all of
            them, or one key per channel in the model's order, for one result.
        translator: what `medcyclegan.load_translator` gives.
        output_keys: where the results go, one per key; None replaces the sources. Of one key per channel there is one
            result and one output key, which is needed.
        allow_missing_keys: leave out keys that are missing.
        mask_key: of the body mask of every key, on the grid of its (first) volume; None: bodies are found from the
            intensities.

    Examples:
        >>> Compose([
        ...     LoadImaged("mr", ensure_channel_first=True),
        ...     TranslateImaged("mr", load_translator("runs/brain"), output_keys="sct"),
        ... ])  # doctest: +SKIP
    """

    def __init__(
        self,
        keys: KeysCollection,
        translator: Callable[..., _Translated],
        output_keys: KeysCollection | None = None,
        allow_missing_keys: bool = False,
        mask_key: Hashable | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.output_keys: tuple[Hashable, ...] = self.keys if output_keys is None else ensure_tuple(output_keys)
        channels = tuple(getattr(translator, "channels", ("image",)))
        self.together = len(channels) > 1 and len(self.keys) > 1
        if self.together and len(self.keys) != len(channels):
            raise ValueError(f"{len(self.keys)} keys for {len(channels)} contrasts: {', '.join(channels)}")
        if self.together and len(self.output_keys) != 1:
            raise ValueError(
                f"{len(channels)} contrasts ({', '.join(channels)}) give one result, which needs one output key"
            )
        if not self.together and len(self.output_keys) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys and {len(self.output_keys)} output keys")
        self.translate = TranslateImage(translator)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        mask = None if self.mask_key is None else result[self.mask_key]
        if self.together:
            missing = [key for key in self.keys if key not in result]
            if missing and not self.allow_missing_keys:
                raise KeyError(f"contrasts are missing: {', '.join(map(str, missing))}")
            if not missing:
                result[self.output_keys[0]] = self.translate([result[key] for key in self.keys], mask)
            return result
        for key, output in self.key_iterator(result, self.output_keys):
            result[output] = self.translate(result[key], mask)
        return result


def _body(mask: MetaTensor, image: MetaTensor) -> npt.NDArray[np.bool_]:
    """(X, Y, Z) of a mask that lies on the grid of an image.

    Raises:
        ValueError: it does not, or is empty.
    """
    inside = mask.detach().cpu().numpy()
    inside = inside[0] if inside.ndim == 4 and len(inside) == 1 else inside
    shape = tuple(image.shape[-3:])
    if inside.shape != shape or not np.allclose(mask.affine.numpy(), image.affine.numpy(), atol=1e-2):
        raise ValueError(f"the mask {inside.shape} does not lie on the grid of its volume {shape}")
    if not (inside > 0).any():
        raise ValueError("the mask is empty")
    return inside > 0


Translated = TranslateImaged
