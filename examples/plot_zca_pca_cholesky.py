"""
ZCA, PCA and Cholesky whitening side by side
============================================

Every ``W`` with ``W C W^T = I`` whitens samples of covariance ``C``, and any two of them differ by
an orthogonal matrix. Three are in use: ``C^{-1/2}`` (ZCA), the scaled eigenvectors (PCA) and the
inverse Cholesky factor. They do very different things to the samples.
"""

import matplotlib.pyplot as plt
import torch
from skimage import data

import matroot


def whitening_matrices(c):
    values, vectors = torch.linalg.eigh(c)
    factor = torch.linalg.cholesky(c)
    return {
        "ZCA": matroot.inv_sqrtm(c),
        "PCA": (vectors / values.sqrt()).mT.flip(0),  # The largest eigenvalue first.
        "Cholesky": torch.linalg.inv(factor),
    }


# %%
# A cloud of points
# -----------------
#
# Each point keeps its colour. ZCA moves the points least (root mean square). PCA turns the long
# axis into the first coordinate. Cholesky only scales the first coordinate, and takes from the
# second what the first says about it.
torch.manual_seed(0)
c = torch.tensor([[4.0, 3.0], [3.0, 3.0]], dtype=torch.float64)
x = torch.randn(1500, 2, dtype=torch.float64) @ matroot.sqrtm(c)
c = x.T.cov()
colors = torch.atan2(x[:, 1], x[:, 0])

figure, axes = plt.subplots(1, 4, sharex=True, sharey=True, layout="constrained")
figure.set_size_inches(8, 2.6)
axes[0].scatter(*x.T.numpy(), c=colors, cmap="twilight", s=4)
axes[0].set_title("Before", fontsize=10)
distance = {}
for ax, (name, w) in zip(axes[1:], whitening_matrices(c).items(), strict=True):
    y = x @ w.T
    distance[name] = (y - x).square().sum(1).mean().sqrt()
    ax.scatter(*y.T.numpy(), c=colors, cmap="twilight", s=4)
    ax.set_title(f"{name} moves by {distance[name]:.1f}", fontsize=10)
for ax in axes:
    ax.set_aspect("equal")
plt.show()

# %%
# Patches of a photograph
# -----------------------
#
# The samples are now patches of 12×12 pixels, with 144 features each. The picture is cut into such
# patches, which are whitened and put together again. Below stand the weights that make one of the
# 144 outputs.
#
# By ZCA a pixel becomes its difference from its neighbours, and the cat stays a cat. Cholesky does
# that with the pixels that come before it in reading order. The outputs of PCA are no pixels: each
# is a wave over the whole patch, all of them at the same variance.
size = 12
photograph = torch.from_numpy(data.chelsea()).double().mean(-1) / 255
patches = photograph.unfold(0, size, 3).unfold(1, size, 3).reshape(-1, size**2)
mean, c = patches.mean(0), patches.T.cov()
cat = photograph[20:236, 110:326]
matrices = whitening_matrices(c)


def whitened(w):
    tiles = cat.unfold(0, size, size).unfold(1, size, size)
    white = (tiles.flatten(2) - mean) @ w.T
    return white.unflatten(2, (size, size)).transpose(1, 2).reshape(cat.shape)


figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
one = 2 * size + size // 2
columns = [("Before", cat - cat.mean(), c[one])]
columns += [(name, whitened(w), w[one]) for name, w in matrices.items()]
for (name, picture, weights), (above, below) in zip(columns, axes.T, strict=True):
    limit = 3 * picture.std()
    above.imshow(picture.numpy(), cmap="gray", vmin=-limit, vmax=limit)
    above.set_title(name)
    weights, limit = weights.reshape(size, size), weights.abs().max()
    below.imshow(weights.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    below.set_title("weights of one output", fontsize=10)
axes[1, 0].set_title("covariance with one pixel", fontsize=10)
for ax in axes.flat:
    ax.set_axis_off()
plt.show()

# %%
# All three whiten, and ZCA moves the points least:
for w in matrices.values():
    assert torch.allclose(w @ c @ w.T, torch.eye(size**2, dtype=c.dtype), atol=1e-8)
assert distance["ZCA"] < min(distance["PCA"], distance["Cholesky"])

# sphinx_gallery_thumbnail_number = 2
