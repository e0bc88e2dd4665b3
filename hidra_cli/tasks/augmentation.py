"""Random changes to the images of training tasks: mirrored, and shifted by up to an eighth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hidra_cli.settings.declarations import Augment

# Padding of CIFAR images before random cropping (He et al. 2016): 4 of 32 pixels on every side.
_SHIFT_SHARE = 8
MIRRORED = np.uint64(1)  # the bit of a key that mirrors an image


def augmented(images: Tensor, keys: npt.NDArray[np.uint64], augment: Augment) -> Tensor:
    """Images mirrored left to right ("flip", "mirror": half of them), shifted ("crop"), or both.

    Pixels from outside of the image are those of the image reflected at its edge.

    Args:
        images: (T, n, C, H, W), on any device.
        keys: (T, n) random numbers: the same number changes an image in the same way, and its bit
            `MIRRORED` says whether the image is mirrored.
        augment: which changes.
    """
    if augment == "none":
        return images
    height, width = images.shape[-2:]
    rows = np.broadcast_to(np.arange(height), (*keys.shape, height))
    columns = np.broadcast_to(np.arange(width), (*keys.shape, width))
    if "flip" in augment or "mirror" in augment:
        columns = np.where((keys & MIRRORED)[..., None] == 1, columns[..., ::-1], columns)
    if "crop" in augment:
        rows = _shifted(rows, keys >> np.uint64(8))
        columns = _shifted(columns, keys >> np.uint64(32))
    pixels = rows[..., :, None] * width + columns[..., None, :]
    there = torch.from_numpy(pixels).to(images.device).flatten(-2).unsqueeze(2)
    flat = images.flatten(-2)
    return flat.gather(-1, there.expand_as(flat)).view_as(images)


def _shifted(places: npt.NDArray[Any], keys: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """Places (T, n, side) moved by a whole number of pixels each, reflected at both ends."""
    side = places.shape[-1]
    most = side // _SHIFT_SHARE
    by = (keys % np.uint64(2 * most + 1)).astype(np.int64) - most
    last = side - 1
    reflected: npt.NDArray[Any] = last - np.abs(last - np.abs(places + by[..., None]))
    return reflected
