"""
Swapping batch normalisation for whitening and fine-tuning
==========================================================

``convert_batchnorm`` replaces the batch normalisation of a trained network by whitening, which
also takes out the correlations of the channels. The network computes what it did, and then is
fine-tuned on pictures taken in another light.
"""

import copy

# sphinx_gallery_start_ignore
import os

# sphinx_gallery_end_ignore
import matplotlib.pyplot as plt
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from matroot.nn import convert_batchnorm

# %%
# Digits, and the same ones as negatives in uneven light.
digits = load_digits()
images, y = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
x = F.interpolate(images[:, None], size=(16, 16), mode="bilinear")
torch.manual_seed(0)
light = torch.randn(len(x), 1, 2, 2)
lit = 1 - x + F.interpolate(light, size=(16, 16), mode="bilinear", align_corners=True) / 2

# %%
# A small ResNet, trained on the plain ones.
steps, more_steps = 60, 90
# sphinx_gallery_start_ignore
steps, more_steps = (30, 45) if "MATROOT_SMALL" in os.environ else (steps, more_steps)
# sphinx_gallery_end_ignore


def train(network, x, steps, lr):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9)
    network.train()
    losses = []
    for _ in range(steps):
        batch = torch.randint(1200, (64,))
        loss = F.cross_entropy(network(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


options = {"in_chans": 1, "num_classes": 10, "channels": (16, 32, 64, 128), "stem_width": 8}
network = timm.create_model("resnet10t", pretrained=False, **options)
loss = train(network, x, steps, lr=0.05)
print(f"training loss: {loss[:10].mean():.1f} at first, {loss[-10:].mean():.1f} in the end")

# %%
# The first normalisation is converted, which sees the light. The outputs stay the same: the
# covariance starts as the diagonal matrix of the running variances.
converted = convert_batchnorm(copy.deepcopy(network))
with torch.no_grad():
    before, after = network.eval()(x[1200:]), converted.eval()(x[1200:])
change = (after - before).norm() / before.norm()
print(f"relative change of the outputs by the conversion: {change:.0e}")

# %%
# Both are trained on in the new light. Whitening takes a ridge of 1e-2, as it should in a first
# layer, whose channels nearly depend on each other.
networks = {
    "batch normalisation": network,
    "whitening": convert_batchnorm(copy.deepcopy(network), eps=1e-2),
}
losses = {name: train(net, lit, more_steps, lr=0.02) for name, net in networks.items()}

# %%
# Uneven light moves all channels together. Batch normalisation scales each of them alone and leaves
# them correlated; whitened they hardly are, and the loss falls faster.
figure, axes = plt.subplot_mosaic(
    [["digits", "loss"], ["batch normalisation", "loss"], ["whitening", "loss"]],
    width_ratios=[1, 2.4],
    figsize=(9, 6.5),
    layout="constrained",
)
shown = torch.cat([torch.cat(list(part[:5, 0]), dim=1) for part in (x, lit)])
axes["digits"].imshow(shown.numpy(), cmap="gray")
title = "Trained on the upper ones,\nfine-tuned on the lower ones"
axes["digits"].set_title(title, fontsize=10)
correlation, colors = {}, {"batch normalisation": "tab:red", "whitening": "black"}
for name, net in networks.items():
    with torch.no_grad():
        channels = net.eval().conv1[:2](lit[:256])  # Up to the first normalisation.
    matrix = channels.transpose(0, 1).flatten(1).corrcoef()
    correlation[name] = matrix[~torch.eye(len(matrix), dtype=torch.bool)].abs().mean()
    axes[name].imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    title = f"{name}:\nmean correlation {correlation[name]:.2f}"
    axes[name].set_title(title, fontsize=10, color=colors[name])
    loss = losses[name].unfold(0, 10, 1).mean(1)
    axes["loss"].semilogy(range(10, more_steps + 1), loss, color=colors[name])
    axes["loss"].text(more_steps + 1, loss[-1], name, color=colors[name], va="center")
for name in ("digits", *networks):
    axes[name].set_axis_off()
axes["loss"].set(xlabel="step of fine-tuning", xlim=(10, 1.45 * more_steps))
axes["loss"].set_ylabel("training loss, mean of ten steps")
axes["loss"].set_yticks([0.1, 0.2, 0.5, 1, 2], [0.1, 0.2, 0.5, 1, 2])
axes["loss"].minorticks_off()
axes["loss"].set_title("Whitened, the network adapts in fewer steps")
axes["loss"].spines[["top", "right"]].set_visible(False)
axes["loss"].spines["bottom"].set_bounds(10, more_steps)
axes["loss"].set_xticks(range(10, more_steps + 1, 20))
plt.show()

# %%
# The network is evaluated by running statistics, as before. (Errors of runs this short scatter by
# some points from seed to seed.)
for name, net in networks.items():
    with torch.no_grad():
        right = net.eval()(lit[1200:]).argmax(1) == y[1200:]
    print(f"{name}: {right.float().mean():.0%} of held-out digits recognised")

assert change < 1e-5
assert losses["whitening"].mean() < losses["batch normalisation"].mean()
assert correlation["whitening"] < correlation["batch normalisation"] / 2
