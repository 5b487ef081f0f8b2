"""
The Fréchet distance as a training loss
=======================================

The Fréchet distance of two Gaussians, fitted to the features of real and of generated samples,
usually judges a trained generator: of features of an Inception network it is the FID.
``matroot.frechet_distance`` has a gradient, so a generator can also be trained by it, without a
discriminator.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import matroot

# %%
# Real samples lie on a ring. Their mean and covariance alone would not tell a ring from a disc;
# those of 64 features do: random waves, which here stand for a pretrained network.
torch.manual_seed(0)


def ring(n):
    angle = 2 * math.pi * torch.rand(n, 1)
    return 1.5 * torch.cat([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(n, 2)


frequencies, phases = torch.randn(2, 64), 2 * math.pi * torch.rand(64)


def features(x):
    return torch.cos(x @ frequencies + phases)


# %%
# The real side is computed once, the generated side in each step of 512 samples.
real = features(ring(5000))
mean, covariance = real.mean(0), real.T.cov()

generator = nn.Sequential(
    nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
)
steps = 300
optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
noise = torch.randn(512, 2)  # To show always the same samples.
losses, shown = [], {}
for step in range(steps + 1):
    if step in (0, 15, 60, steps):
        shown[step] = generator(noise).detach()
    generated = features(generator(torch.randn(512, 2)))
    ours = generated.mean(0), generated.T.cov()
    loss = matroot.frechet_distance(*ours, mean, covariance)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())

# %%
# Starting from a point, the samples spread and find the ring.
figure, axes = plt.subplots(1, 4, sharex=True, sharey=True, layout="constrained")
figure.set_size_inches(8, 2.6)
background = ring(2000)
for ax, (step, samples) in zip(axes, shown.items(), strict=True):
    ax.scatter(*background.T.numpy(), s=2, color="0.85")
    ax.scatter(*samples.T.numpy(), s=4, color="tab:blue")
    ax.set_title(f"step {step}: d² = {losses[step]:.2g}", fontsize=10)
    ax.set(aspect="equal", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
axes[0].text(0, -2.2, "real samples", ha="center", color="0.5")
axes[0].text(0, 0.25, "generated", ha="center", color="tab:blue")
plt.show()

# %%
# To judge the result, take samples that training has not seen. ``matroot.nn.FrechetDistance`` adds
# them up batch by batch.
distance = matroot.nn.FrechetDistance(64, features)
for _ in range(20):
    distance.update(ring(500), real=True)
    distance.update(generator(torch.randn(500, 2)), real=False)
print(f"d² at the start: {losses[0]:.2g}")
print(f"d² of 10,000 new samples: {distance.compute():.2g}")

assert distance.compute() < 0.01 * losses[0]
