"""
A covariance pooling head on a timm backbone
============================================

Global average pooling keeps of each channel its mean over the picture. Covariance pooling keeps
how the channels vary together, which is what tells textures apart. Both are given the same
features here, those of a timm backbone.
"""

# sphinx_gallery_start_ignore
import os

# sphinx_gallery_end_ignore
import matplotlib.pyplot as plt
import timm
import torch
from skimage import data
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from matroot.nn import CovariancePooling2d

# %%
# Patches of seven textures: the left halves of the photographs are for training, the right ones for
# the test. Each patch has mean 0 and variance 1, so that brightness and contrast tell nothing.
photographs = {
    "brick": data.brick(),
    "grass": data.grass(),
    "gravel": data.gravel(),
    "wood": data.coffee()[270:400, 482:600].mean(-1),
    "tissue": data.immunohistochemistry().mean(-1),
    "fur": data.chelsea()[:110].mean(-1),
    "galaxies": data.hubble_deep_field().mean(-1),
}
size, counts, tests = 48, (10, 20, 40, 80, 160), 100
# sphinx_gallery_start_ignore
counts, tests = ((10, 40), 40) if "MATROOT_SMALL" in os.environ else (counts, tests)
# sphinx_gallery_end_ignore
torch.manual_seed(0)


def patches(photograph, count):
    tops = torch.randint(photograph.shape[0] - size, (count,))
    lefts = torch.randint(photograph.shape[1] - size, (count,))
    cut = [photograph[i : i + size, j : j + size] for i, j in zip(tops, lefts, strict=True)]
    cut = torch.stack(cut)
    return ((cut - cut.mean((1, 2), True)) / cut.std((1, 2), keepdim=True))[:, None]


training, test = [], []
for photograph in photographs.values():
    left, right = torch.as_tensor(photograph).float().tensor_split(2, dim=1)
    training.append(patches(left, max(counts)))
    test.append(patches(right, tests))

# %%
# The backbone has random weights and stays as it is: only the pooling differs, and what it gives to
# a linear classifier. Of 24 channels the average makes 24 numbers, the covariance 24·25/2.
backbone = timm.create_model(
    "efficientnet_b0", pretrained=False, features_only=True, out_indices=[1], in_chans=1
).eval()
channels = backbone.feature_info.channels()[0]
poolings = {
    "average": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "covariance": CovariancePooling2d(channels, normalization="none"),
    "root of covariance": CovariancePooling2d(channels),
}
with torch.no_grad():
    features = [[backbone(x)[0] for x in part] for part in (training, test)]

accuracy = {}
for name, pool in poolings.items():
    x, y = (torch.stack([pool(f) for f in part]) for part in features)
    accuracy[name] = []
    for count in counts:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        labels = torch.arange(7)[:, None]
        classifier.fit(x[:, :count].flatten(0, 1), labels.expand(-1, count).flatten())
        score = classifier.score(y.flatten(0, 1), labels.expand(-1, tests).flatten())
        accuracy[name].append(100 * score)

# %%
# The root of the covariance does better with ten patches of a texture than the average with all of
# them, and better than the covariance itself.
figure, axes = plt.subplot_mosaic(
    [list(photographs), ["curves"] * 7],
    height_ratios=[1, 3],
    figsize=(9, 6),
    layout="constrained",
)
for name, (patch, *_) in zip(photographs, test, strict=True):
    axes[name].imshow(patch[0].numpy(), cmap="gray")
    axes[name].set_title(name, fontsize=10)
    axes[name].set_axis_off()
ax = axes["curves"]
colors = ("tab:red", "tab:blue", "black")
sides = ("center", "top", "bottom")
for (name, a), color, va in zip(accuracy.items(), colors, sides, strict=True):
    ax.semilogx(counts, a, color=color, marker="o", markersize=4)
    ax.text(counts[-1] * 1.05, a[-1], f"{name}: {a[-1]:.0f} %", color=color, va=va)
ax.set(xlabel="training patches of each texture", ylabel="textures recognised, %")
ax.set(xlim=(counts[0] / 1.1, counts[-1] * 2), ylim=(40, 100))
ax.set_xticks(counts, counts)
ax.minorticks_off()
ax.set_title("The covariance of the channels tells textures apart better than their average")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# To train the backbone as well, put the pooling and a linear layer behind it. Gradients go through
# the root, down to the first weights of the backbone.
pool = poolings["root of covariance"]
head = nn.Sequential(pool, nn.Linear(pool.out_features, len(photographs)))
(features,) = backbone(torch.cat(test)[::tests])
nn.functional.cross_entropy(head(features), torch.arange(7)).backward()

first = backbone.conv_stem.weight.grad
assert first.isfinite().all()
assert first.norm() > 0
average, covariance, root = accuracy.values()
assert root[0] > average[-1]
assert root[0] > covariance[0]
assert min(a - b for a, b in zip(root, average, strict=True)) > 10
