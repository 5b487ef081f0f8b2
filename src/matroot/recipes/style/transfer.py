"""Load a trained network, and give a photograph a style with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matroot.recipes.methods import layer_options
from matroot.recipes.style.learner import Learner
from matroot.recipes.style.pairs import from_bytes, to_bytes
from matroot.recipes.training.configuration import settings
from matroot.recipes.training.folder import RunFolder, read_checkpoint, read_json


def load(run: Path) -> Learner:
    """The network that ``matroot train style`` has left in a folder.

    Raises:
        ValueError: the folder holds no run of this application.
    """
    folder = RunFolder(run)
    if not folder.description.is_file() or not folder.checkpoint.is_file():
        raise ValueError(
            f"{run}: expected run.json and last.ckpt of a run of 'matroot train style'"
        )
    values = read_json(folder.description)
    if values.get("application") != "style":
        raise ValueError(f"{run}: expected a run of style, got one of {values.get('application')}")
    try:
        gradient = None if values["gradient"] == "auto" else values["gradient"]
        config: Any = settings("style", values["config"], str(folder.description))
        network = Learner(config, layer_options(values["method"], gradient, config.eps))
        network.load_state_dict(read_checkpoint(folder.checkpoint)["state_dict"])
    except (KeyError, TypeError, RuntimeError):
        raise ValueError(f"{run}: run.json and last.ckpt do not go together") from None
    return network.eval()


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
    return to_bytes(network(x, y))[0, :, :height, :width]
