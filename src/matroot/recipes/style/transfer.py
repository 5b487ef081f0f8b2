"""Give a photograph a style with a trained network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from matroot.recipes.style.learner import Learner
from matroot.recipes.style.pairs import from_bytes, to_bytes


@torch.no_grad()
def transfer(network: Learner, photograph: Tensor, style: Tensor) -> Tensor:
    """The photograph in the style, by a trained network; all three are uint8 (3, H, W)."""
    height, width = photograph.shape[1:]
    if min(height, width, *style.shape[1:]) < 16:
        raise ValueError(
            "expected pictures of at least 16×16 pixels, got "
            f"{height}×{width} and {style.shape[1]}×{style.shape[2]}"
        )
    x, y = (
        F.pad(from_bytes(t)[None], (0, -t.shape[2] % 4, 0, -t.shape[1] % 4), mode="reflect")
        for t in (photograph, style)
    )
    device = next(network.parameters()).device
    return to_bytes(network(x.to(device), y.to(device))).cpu()[0, :, :height, :width]
