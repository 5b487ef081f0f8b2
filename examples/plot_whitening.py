"""
Whitening a data set and undoing it
===================================

Whitened features are uncorrelated and have variance 1. With the covariance ``C`` of the
training samples whitening is a product with ``C^{-1/2}``, and undoing it one with
``C^{1/2}``: ``matroot.sqrtm_pair`` finds both at once.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes

import matroot

# %%
# Ten measurements of 442 patients. A third of the patients is held out: mean and covariance come
# from the others.
x = torch.from_numpy(load_diabetes(scaled=False).data)
names = ["age", "sex", "body mass index", "blood pressure", "total cholesterol"]
names += ["LDL", "HDL", "cholesterol/HDL", "log triglycerides", "blood sugar"]
order = torch.randperm(442, generator=torch.Generator().manual_seed(0))
held_out, training = x[order[:147]], x[order[147:]]

# %%
# The units differ (years, mg/dl …), so each feature is first divided by its standard deviation.
# The covariance is then the matrix of correlations.
mean, scale = training.mean(0), training.std(0)
correlation = ((training - mean) / scale).T.cov()
root, inverse = matroot.sqrtm_pair(correlation)


def whiten(x):
    return (x - mean) / scale @ inverse


def undo(white):
    return white @ root * scale + mean


# %%
# Of the training samples all correlations are gone. Of the held-out ones about 0.1 is left: 147
# patients do not tell a correlation better than that.
panels = {
    "Training:\nfeatures are correlated": training,
    "Training, whitened:\nno correlation is left": whiten(training),
    "Held out, whitened:\nhardly any is left": whiten(held_out),
}
figure, axes = plt.subplots(1, 3, figsize=(8, 3), sharey=True, layout="constrained")
for ax, (title, samples) in zip(axes, panels.items(), strict=True):
    image = ax.imshow(samples.T.corrcoef().numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
axes[0].set_yticks(range(10), names)
figure.colorbar(image, ax=axes, label="correlation", ticks=[-1, 0, 1], shrink=0.64)
plt.show()

# %%
# The new features keep their meaning: of all ways to whiten, the symmetric one keeps the sum of
# their correlations with the old features largest.
likeness = root.diagonal()
print(f"correlation of new with old: {likeness.min():.2f} to {likeness.max():.2f}")

# %%
# Nothing is lost on the way there and back.
error = ((undo(whiten(held_out)) - held_out) / scale).abs().max()
print(f"there and back: within {error:.0e} standard deviations")

# %%
# In short:
covariance = whiten(training).T.cov()
left = whiten(held_out).T.corrcoef() - torch.eye(10)
assert torch.allclose(covariance, torch.eye(10, dtype=x.dtype), atol=1e-12)
assert left.abs().mean() < 0.1
assert likeness.min() > 0.7
assert error < 1e-12
