"""
Colours of one photograph for another
=====================================

Take the pixels of a photograph as samples of a Gaussian in red, green and blue. Of all maps that
give them the mean and covariance of another photograph's pixels, optimal transport is the one
that changes the colours least: ``matroot.transport_map``.
"""

import matplotlib.pyplot as plt
import torch
from skimage import data

import matroot

rocket = torch.from_numpy(data.rocket())[::2, ::2].double() / 255
coffee = torch.from_numpy(data.coffee())[::2, ::2].double() / 255


def statistics(photograph):
    pixels = photograph.reshape(-1, 3)
    return pixels.mean(0), pixels.T.cov()


def transported(photograph, target):
    (mean1, cov1), (mean2, cov2) = statistics(photograph), statistics(target)
    return mean2 + (photograph - mean1) @ matroot.transport_map(cov1, cov2)


# %%
# Each pixel moves on a straight line to its new colour, and one may stop on the way. The map is
# linear, so shades stay shades.
red_rocket, blue_coffee = transported(rocket, coffee), transported(coffee, rocket)
figure, axes = plt.subplots(2, 4, figsize=(8, 3.4), layout="constrained")
for row, start, end, titles in (
    (axes[0], rocket, red_rocket, ("Rocket", "in the coffee's colours")),
    (axes[1], coffee, blue_coffee, ("Coffee", "in the rocket's colours")),
):
    for step, ax in enumerate(row):
        ax.imshow(start.lerp(end, step / 3).clamp(0, 1).numpy())
        title = (titles[0], "⅓ of the way", "⅔ of the way", titles[1])[step]
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
plt.show()

# %%
# Mean and covariance are now those of the other photograph, until what is darker than black or
# brighter than white is cut off.
clipped = ((red_rocket < 0) | (red_rocket > 1)).double().mean()
print(f"of the rocket's new values {clipped:.0%} are cut off")

# %%
# How far the colours have moved is the Fréchet distance, which needs no map. Whitening and
# colouring, ``C1^{-1/2} C2^{1/2}``, leads to the same mean and covariance and moves them further.
(mean1, cov1), (mean2, cov2) = statistics(rocket), statistics(coffee)
moved = (red_rocket - rocket).square().sum(-1).mean()
d2 = matroot.frechet_distance(mean1, cov1, mean2, cov2)
colored = mean2 + (rocket - mean1) @ matroot.inv_sqrtm(cov1) @ matroot.sqrtm(cov2)
further = (colored - rocket).square().sum(-1).mean()
print(f"mean squared move {moved:.4f}, Fréchet distance {d2:.4f}")
print(f"mean squared move by whitening and colouring {further:.4f}")

# %%
# In short:
torch.testing.assert_close(statistics(red_rocket), (mean2, cov2))
torch.testing.assert_close(statistics(colored), (mean2, cov2))
torch.testing.assert_close(moved, d2, rtol=1e-4, atol=0)
assert further > moved
