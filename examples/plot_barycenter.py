"""
Means of covariances
====================

What lies half-way between two covariances depends on the metric. The arithmetic mean of two narrow
ones is wide. The Bures–Wasserstein barycentre, ``matroot.barycenter``, is the covariance half-way
along optimal transport, and the log-Euclidean mean has the (geometric) mean of the volumes.
"""

import matplotlib.pyplot as plt
import torch

import matroot


def covariance(angle, long, short):
    turn = torch.deg2rad(torch.tensor(float(angle), dtype=torch.float64))
    axis = torch.stack([turn.cos(), turn.sin()])
    identity = torch.eye(2, dtype=torch.float64)
    return short**2 * identity + (long**2 - short**2) * axis.outer(axis)


def ellipse(c, x, y):
    """The curve at one standard deviation, its centre at (x, y)."""
    turn = torch.linspace(0, 2 * torch.pi, 100, dtype=torch.float64)
    points = matroot.sqrtm(c) @ torch.stack([turn.cos(), turn.sin()])
    return points[0].numpy() + x, points[1].numpy() + y


# %%
# Between two
# -----------
#
# All three take batches: here one covariance for each weight.
ends = torch.stack([covariance(-25, 0.45, 0.06), covariance(65, 0.45, 0.06)])
second = torch.linspace(0, 1, 7, dtype=torch.float64)
weights = torch.stack([1 - second, second], 1)
logarithms = torch.einsum("wk,kij->wij", weights, matroot.logm(ends))
means = {
    "arithmetic": torch.einsum("wk,kij->wij", weights, ends),
    "Bures–Wasserstein": matroot.barycenter(ends, weights),
    "log-Euclidean": matroot.expm(logarithms),
}
area = {name: c.det().sqrt() / ends[0].det().sqrt() for name, c in means.items()}

figure, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
for y, (name, row) in zip((2, 1, 0), means.items(), strict=True):
    for x, c in enumerate(row):
        ax.fill(*ellipse(c, x, y), color=plt.cm.viridis(x / 7), alpha=0.8)
    text = f"{name}:\narea × {area[name][3]:.1f} in the middle"
    ax.text(-0.7, y, text, ha="right", va="center")
ax.set_title("From one covariance to another, by three means")
ax.set(aspect="equal", xlim=(-3.1, 6.5))
ax.set_axis_off()
plt.show()

# %%
# Between four
# ------------
#
# The barycentres of the four corners, with the weights of bilinear interpolation.
corners = torch.stack(
    [
        covariance(0, 0.45, 0.05),
        covariance(90, 0.45, 0.05),
        covariance(0, 0.4, 0.4),
        covariance(45, 0.45, 0.15),
    ]
)
t = torch.linspace(0, 1, 6, dtype=torch.float64)
weights = torch.stack([torch.outer(b, a) for b in (1 - t, t) for a in (1 - t, t)], -1)
grid = matroot.barycenter(corners, weights)

figure, ax = plt.subplots(figsize=(5, 5), layout="constrained")
for i in range(6):
    for j in range(6):
        corner = {i, j} <= {0, 5}
        ax.fill(*ellipse(grid[i, j], j, -i), color="tab:orange" if corner else "tab:blue")
ax.set(aspect="equal", title="Barycentres (blue) of four covariances (orange)")
ax.set_axis_off()
plt.show()

# %%
# The arithmetic mean is the largest, the log-Euclidean one has the area of the ends, and the
# barycentre of two lies on the straight line of optimal transport:
middle = {name: c[3].item() for name, c in area.items()}
assert abs(middle["log-Euclidean"] - 1) < 1e-12
assert middle["arithmetic"] > middle["Bures–Wasserstein"] > middle["log-Euclidean"]
line = 0.5 * (torch.eye(2, dtype=torch.float64) + matroot.transport_map(*ends))
torch.testing.assert_close(means["Bures–Wasserstein"][3], line @ ends[0] @ line)

# sphinx_gallery_thumbnail_number = 2
