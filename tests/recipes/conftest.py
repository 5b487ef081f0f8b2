import functools

import pytest
import torch

from matroot.recipes import embedded


@pytest.fixture
def few_pictures(monkeypatch):
    """Every tenth picture, which is enough to see that things work."""
    for name in ("digits", "textures"):
        whole = getattr(embedded, name)

        def part(*arguments, whole=whole):
            x, y = whole(*arguments).tensors
            return torch.utils.data.TensorDataset(x[::10].clone(), y[::10])

        monkeypatch.setattr(embedded, name, part)
    few_clips = functools.partial(embedded.motions, count=12)
    monkeypatch.setattr(embedded, "motions", few_clips)
