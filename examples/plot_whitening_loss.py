r"""
A whitening loss for self-supervised features
=============================================

Two views of a picture should have the same features. A network trained for nothing else gives all
pictures the same features: they collapse. Comparing *whitened* features rules that out,
since these have variance 1 in every direction whatever the network does. (W-MSE: A. Ermolov et
al., Whitening for Self-Supervised Representation Learning, ICML 2021.)
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import matroot

# %%
# Digits of 8×8 pixels. A view of one is turned, stretched and moved a little, and noisy.
digits = load_digits()
x, labels = torch.from_numpy(digits.images).float()[:, None] / 16, digits.target
training, held_out = slice(0, 1200), slice(1200, None)


def view(x):
    moves = torch.eye(2, 3) + 0.12 * torch.randn(len(x), 2, 3)
    grid = F.affine_grid(moves, x.shape, align_corners=False)
    return F.grid_sample(x, grid, align_corners=False) + 0.1 * torch.randn_like(x)


# %%
# The loss without whitening and with it. There is no ``eps``: features smaller than a ridge would
# not be whitened, and could collapse after all.


def distance(z):
    first, second = z.chunk(2)
    return (first - second).square().sum(1).mean()


def whitened_distance(z):
    z = z - z.mean(0)
    return distance(z @ matroot.inv_sqrtm(z.T @ z / len(z)))


# %%
# A small network with 32 features, trained by each.
steps = 150


def trained(loss, steps):
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 32, 3, 1, 1), nn.Conv2d(32, 64, 3, 2, 1)
    last = nn.Linear(64 * 16, 32)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), last)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        batch = x[training][torch.randint(1200, (128,))]
        optimizer.zero_grad()
        loss(net(torch.cat([view(batch), view(batch)]))).backward()
        optimizer.step()
    return net


networks = {
    "before training": trained(distance, 0),
    "distance alone": trained(distance, steps),
    "distance of whitened features": trained(whitened_distance, steps),
}

# %%
# Distance alone leaves next to no variance in any direction. By what is left fewer digits are
# recognised than by the features before training, by features trained with whitening more.
# (Recognised by a linear classifier of the features that has seen 100 labels.)
figure, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
accuracy, spectra = {}, {}
for (name, net), color in zip(networks.items(), ("gray", "tab:red", "black"), strict=True):
    z = net(x).detach()
    covariance = z[training].double().T.cov()
    variances = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=1e-12)
    scaled = ((z - z[training].mean(0)) / z[training].std(0)).numpy()
    classifier = LogisticRegression(max_iter=1000).fit(scaled[:100], labels[:100])
    accuracy[name] = classifier.score(scaled[held_out], labels[held_out])
    spectra[name] = variances
    ax.semilogy(range(1, 33), variances, color=color, marker="o", markersize=3)
    label = f"{name}:\n{accuracy[name]:.0%} of digits recognised"
    ax.text(33, variances[-1].clamp(min=5e-10), label, color=color, va="center")
ax.set(xlabel="direction of the features, by variance", ylabel="variance", xlim=(0, 48))
ax.set_ylim(bottom=1e-10)
ax.set_xticks([1, 8, 16, 24, 32])
ax.set_title("Features collapse by the distance of two views, but not if whitened")
ax.spines[["top", "right"]].set_visible(False)
ax.spines["bottom"].set_bounds(1, 32)
plt.show()

whitened, alone = spectra["distance of whitened features"], spectra["distance alone"]
assert alone.sum() < 0.01 * whitened.sum()
assert whitened[-1] > 0.01 * whitened[0]
assert alone[-1] < 1e-4 * alone[0]
before, collapsed, learnt = accuracy.values()
assert collapsed < before < learnt
