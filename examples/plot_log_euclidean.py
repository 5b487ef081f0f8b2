"""
Log-Euclidean means and a small SPD network
===========================================

The logarithm takes covariances to plain symmetric matrices, which can be averaged and fed to a
linear layer; the exponential takes the mean back. ``matroot.logm`` and ``matroot.expm`` are
batched and have exact gradients, also where eigenvalues repeat.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import matroot
from matroot.nn import pack_triangle

# %%
# Recordings of 12 channels, in each of which 12 hidden sources are mixed. Two sources are weak or
# strong, which makes four classes; the power of the others varies, as does the loudness.
torch.manual_seed(0)
mixing = torch.randn(12, 12)
classes = ["both weak", "first strong", "second strong", "both strong"]


def recordings(number):
    label = torch.arange(number) % 4
    log_power = torch.randn(number, 12)
    log_power[:, 0] = 3.0 * (label % 2) + 0.4 * torch.randn(number)
    log_power[:, 1] = 3.0 * (label // 2) + 0.4 * torch.randn(number)
    loudness = torch.exp(0.3 * torch.randn(number, 1, 1))
    sources = torch.exp(log_power / 2)[..., None] * torch.randn(number, 12, 200)
    # Covariances of mixtures are ill-conditioned: double precision.
    x = (loudness * (mixing @ sources)).double()
    return x @ x.mT / 200, label


training, label = recordings(400)
test, test_label = recordings(400)

# %%
# Nearest class mean
# ------------------
#
# The loudest recordings decide an arithmetic mean; to a log-Euclidean one all contribute alike.


def log_euclidean_mean(c):
    return matroot.expm(matroot.logm(c).mean(0))


def nearest(x, means):
    distance = (x[:, None] - means).flatten(2).norm(dim=-1)
    return (distance.argmin(1) == test_label).double().mean()


groups = [training[label == k] for k in range(4)]
arithmetic = nearest(test, torch.stack([c.mean(0) for c in groups]))
means = torch.stack([log_euclidean_mean(c) for c in groups])
log_euclidean = nearest(matroot.logm(test), matroot.logm(means))
print(f"nearest arithmetic mean: {arithmetic:.0%} right")
print(f"nearest log-Euclidean mean: {log_euclidean:.0%} right")

# %%
# A network
# ---------
#
# ``W C W^T`` makes two channels of twelve, its logarithm is classified by a linear layer, and both
# are trained together.


class SPDNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.channels = nn.Parameter(torch.linalg.qr(torch.randn(12, 2)).Q.T.clone())
        self.linear = nn.Linear(3, 4)

    def log(self, c):
        return matroot.logm(self.channels @ c @ self.channels.T)

    def forward(self, c):
        return self.linear(pack_triangle(self.log(c), scaled=True))


net = SPDNet().double()
optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
before = net.log(test).detach()
for _ in range(300):
    loss = nn.functional.cross_entropy(net(training), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
after = net.log(test).detach()
right = (net(test).argmax(1) == test_label).double().mean()

box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
middle = {"ha": "center", "va": "center", "weight": "bold"}
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for k, name in enumerate(classes):
    for ax, logs in zip(axes, (before, after), strict=True):
        x, y = logs[test_label == k].diagonal(dim1=1, dim2=2).T.numpy()
        ax.scatter(x, y, s=6, color=f"C{k}")
    axes[1].text(x.mean(), y.mean(), name, color=f"C{k}", bbox=box, **middle)
axes[0].set_title("Before training: classes overlap")
axes[1].set_title(f"After training: {right:.0%} right")
for ax in axes:
    ax.set(xlabel="entry (1, 1) of the logarithm", ylabel="entry (2, 2)")
plt.show()

# %%
# In short:
assert log_euclidean > arithmetic
assert right > 0.95
