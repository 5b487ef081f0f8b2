"""Draw the picture of docs/whitening_data.md: what kinds of whitening look for in photographs.

python benchmarks/whitening_data.py    a few seconds; writes docs/images/whitening_kinds.png
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from numerics import IMAGES
from torch import Tensor

from matroot.nn import Whitening
from matroot.recipes.images import CONTENTS, photograph

SIZE = 9  # pixels of a patch
SHOWN = 9  # rows of W of each kind


def patches(count: int = 20000) -> Tensor:
    """Grey patches of photographs, in rows."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in CONTENTS:
        picture = photograph(name).double().mean(0) / 255
        tiles = picture.unfold(0, SIZE, 1).unfold(1, SIZE, 1).reshape(-1, SIZE * SIZE)
        found.append(tiles[torch.randint(len(tiles), (count,), generator=generator)])
    return torch.cat(found)


def main() -> None:
    """Rows of W as pictures, each scaled by itself: grey is 0."""
    x = patches()
    d = x.shape[1]
    every = torch.linspace(0, d - 1, SHOWN).long()
    rows = {
        "zca\none pixel less\nthose around it": ("zca", every),
        "pca\nwaves, coarse\nto fine": ("pca", torch.arange(SHOWN)),
        "cholesky\none pixel less\nthose before it": ("cholesky", every),
    }
    drawn = Figure(figsize=(SHOWN + 2.2, 3.6), layout="constrained", facecolor="white")
    axes = drawn.subplots(len(rows), SHOWN)
    for line, (label, (kind, chosen)) in zip(axes, rows.items(), strict=True):
        matrix = Whitening(d, kind=kind, eps=1e-5).fit(x).whitening_matrix
        for axis, i in zip(line, chosen.tolist(), strict=True):
            row = matrix[i].view(SIZE, SIZE)
            most = float(row.abs().max())
            axis.imshow(row, cmap="gray", vmin=-most, vmax=most)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11)
    drawn.savefig(IMAGES / "whitening_kinds.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
