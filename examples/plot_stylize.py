"""
Texture synthesis by ``stylize``
================================

The covariance of its patches holds the colours of a texture, its grain and its direction.
``matroot stylize`` moves the patches of one picture to the covariance of another's: whitened by
``C^{-1/2}``, coloured by ``S^{1/2}``. From noise it makes new texture; a photograph it
paints in it.
"""

import itertools

# sphinx_gallery_start_ignore
import os

# sphinx_gallery_end_ignore
import matplotlib.pyplot as plt
import torch
from skimage import data

from matroot.recipes.stylize import stylize

# %%
# Three textures, and two pictures to give them to.


def pixels(picture):
    """uint8 of shape (3, H, W)."""
    return torch.from_numpy(picture).movedim(-1, 0).contiguous()


side = 200
# sphinx_gallery_start_ignore
side = 100 if "MATROOT_SMALL" in os.environ else side
# sphinx_gallery_end_ignore
brick = data.brick()[:256, :256, None].repeat(3, axis=2)
textures = {
    "wood": pixels(data.coffee()[270:400, 482:600]),
    "stained tissue": pixels(data.immunohistochemistry()[:256, :256]),
    "bricks": pixels(brick),
}
generator = torch.Generator().manual_seed(0)
noise = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
cat = pixels(data.chelsea()[20 : 20 + side, 110 : 110 + side])

# %%
# ``texture=0`` lays none of the texture's own pixels into the result, so that what comes of the
# noise is covariances alone. The command does the same with files:
# ``matroot stylize CAT.jpg WOOD.jpg -o OUT.png``.
synthesised = {name: stylize(noise, style, texture=0) for name, style in textures.items()}
painted = {name: stylize(cat, style, strength=0.8) for name, style in textures.items()}

figure, axes = plt.subplots(3, 4, figsize=(10, 8), layout="constrained")
rows = [[torch.full_like(cat, 255), *textures.values()]]
rows += [[noise, *(found.image for found in synthesised.values())]]
rows += [[cat, *(found.image for found in painted.values())]]
for ax, picture in zip(axes.flat, itertools.chain(*rows), strict=True):
    ax.imshow(picture.movedim(0, -1).numpy())
    ax.set_axis_off()
for ax, name in zip(axes[0, 1:], textures, strict=True):
    ax.set_title(name)
axes[1, 0].set_title("noise becomes …")
axes[2, 0].set_title("a cat becomes …")
plt.show()

# %%
# Grain and direction are there, and so are the colours. Where one brick ends and the next begins is
# not: edges are more than pairs of pixels tell.
for name, found in synthesised.items():
    before, after = found.distance_before, found.distance_after
    print(f"noise to {name}: distance of the covariances {before:.2f}, then {after:.2f}")

for found in synthesised.values():
    assert found.distance_after < found.distance_before / 10
for found in painted.values():
    assert found.distance_after < found.distance_before
