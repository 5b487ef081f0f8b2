"""
Accuracy of every method against the condition number
=====================================================

Which methods still find the root when a matrix is ill-conditioned? Every method of matroot, and an
eigendecomposition written by hand, in float32 on random 32×32 matrices with known eigenvalues.
"""

import matplotlib.pyplot as plt
import torch

import matroot
from matroot.testing import exact, random_spd, relative_error

# %%
# ``auto`` is what a call without ``method=`` takes, on a CPU ``eigh``. The others have their
# default settings, which for ``taylor``, ``pade`` and ``newton_schulz`` are the published ones.
methods = ["auto", "minimax", "svd", "pade", "newton_schulz", "taylor"]


def by_hand(a, power):
    values, q = torch.linalg.eigh(a)
    return (q * values.clamp(min=1e-7)[..., None, :] ** power) @ q.mT


# %%
# The truth is an eigendecomposition in double precision. From a condition number of some 2·10⁶ on a
# matrix in float32 counts as singular, and ``inv_sqrtm`` says so instead of returning numbers.
conds = torch.logspace(0.5, 5.5, 11).tolist()
names = (*methods, "by hand")
errors = {(what, name): [] for what in ("sqrt", "inv_sqrt") for name in names}
for cond in conds:
    a = random_spd(32, 16, cond=cond, dtype=torch.float32)
    found = {("sqrt", "by hand"): by_hand(a, 0.5)}
    found["inv_sqrt", "by hand"] = by_hand(a, -0.5)
    for name in methods:
        found["sqrt", name] = matroot.sqrtm(a, method=name)
        found["inv_sqrt", name] = matroot.inv_sqrtm(a, method=name)
    for (what, name), root in found.items():
        errors[what, name].append(relative_error(root, exact(a, what)).mean())

# %%
# Taylor, Padé and Newton–Schulz take a fixed number of steps and compute a smoothed root, in which
# small eigenvalues come out too large. The others differ in how much they amplify the rounding of
# float32.
figure, (left, right) = plt.subplots(1, 2, sharey=True, figsize=(10, 4.8), layout="constrained")
colors = ["black", "tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:red"]
colors = dict(zip(names, colors, strict=True))
shifts = {"sqrt": {"minimax": 0.6}, "inv_sqrt": {"taylor": 2, "pade": 0.5}}
for (what, name), error in errors.items():
    axes = left if what == "sqrt" else right
    axes.loglog(conds, error, color=colors[name], marker="o", markersize=3)
    label = {"by hand": "torch.linalg.eigh by hand"}.get(name, name)
    # Where lines end in one point their labels stand one below the other.
    shift = shifts[what].get(name, 1)
    axes.text(5e5, error[-1] * shift, label, color=colors[name], va="center", fontsize=9)
left.set(title="root", ylabel="relative error")
right.set(title="inverse root")
for axes in (left, right):
    axes.set(xlabel="condition number", xlim=(2, 3e8), xticks=[1e1, 1e2, 1e3, 1e4, 1e5])
    axes.minorticks_off()
    axes.spines["bottom"].set_bounds(2, 4e5)
    axes.spines[["top", "right"]].set_visible(False)
figure.suptitle("Only auto, the default, keeps the digits of float32 whatever the condition number")
plt.show()

# %%
# Those figures of ``auto`` are of the compiled kernels, which find eigenvalues in double precision.
# Where matroot was installed without a compiler, ``minimax`` is the most accurate.
compiled = matroot.explain(a).backend == "native"
for name in names:
    root, inverse = max(errors["sqrt", name]), max(errors["inv_sqrt", name])
    print(f"{name:14} largest error {root:.0e}, of the inverse root {inverse:.0e}")

for what in ("sqrt", "inv_sqrt"):
    worst = {name: max(errors[what, name]) for name in names}
    assert worst["auto"] < 1e-6 or not compiled
    assert worst["minimax"] < 1e-4 < worst["pade"]
    assert worst["minimax"] < worst["by hand"]
