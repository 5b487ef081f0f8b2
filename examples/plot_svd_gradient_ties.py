"""
What goes wrong with SVD gradients at ties
==========================================

Autograd through ``torch.linalg.eigh`` or ``torch.linalg.svd`` divides by differences of eigenvalues,
:math:`1/(\\lambda_i - \\lambda_j)`. The square root itself has no trouble there: its gradient divides by
sums, :math:`1/(\\sqrt{\\lambda_i} + \\sqrt{\\lambda_j})`. Here two eigenvalues approach each other, and each
gradient is compared with one computed in 40 digits.
"""

import os

import matplotlib.pyplot as plt
import mpmath
import torch

import matroot

# %%
# The square root by hand, twice, and matroot's.


def by_eigh(a):
    values, q = torch.linalg.eigh(a)
    return q @ torch.diag(values.sqrt()) @ q.T


def by_svd(a):
    u, values, vh = torch.linalg.svd(a)
    return u @ torch.diag(values.sqrt()) @ vh


def gradient(root, a, g):
    a = a.clone().requires_grad_()
    (found,) = torch.autograd.grad(root(a), a, g)
    return (found + found.T) / 2


def exact_gradient(a, g):
    """Of exactly this matrix, rounded as it is, in 40 digits."""
    with mpmath.workdps(40):
        values, q = mpmath.eigsy(mpmath.matrix(a.tolist()))
        s = values.apply(mpmath.sqrt)
        h = q.T * mpmath.matrix(g.tolist()) * q
        for i in range(len(s)):
            for j in range(len(s)):
                h[i, j] /= s[i] + s[j]
        return torch.tensor((q * h * q.T).tolist(), dtype=torch.float64)


# %%
# Random 6×6 matrices with eigenvalues 1, 1 + gap, 1.4, 1.6, 1.8 and 2: nothing but the gap is hard.
# Each error is the median of several matrices, NaN if one of them is.

repeats = 8
# sphinx_gallery_start_ignore
repeats = 3 if "MATROOT_SMALL" in os.environ else repeats
# sphinx_gallery_end_ignore
roots = {"eigh by hand": by_eigh, "svd by hand": by_svd, "matroot": matroot.sqrtm}
gaps = {torch.float32: 10.0 ** -torch.arange(1, 9), torch.float64: 10.0 ** -torch.arange(1, 16)}
errors = {(name, dtype): [] for name in roots for dtype in gaps}
generator = torch.Generator().manual_seed(0)
for dtype, gap in ((dtype, gap) for dtype in gaps for gap in gaps[dtype].tolist()):
    values = torch.tensor([1, 1 + gap, 1.4, 1.6, 1.8, 2], dtype=torch.float64)
    draws = torch.randn(2, repeats, 6, 6, dtype=torch.float64, generator=generator)
    q = torch.linalg.qr(draws[0]).Q
    a = (q * values @ q.mT).to(dtype)
    a, g = (a + a.mT) / 2, (draws[1] + draws[1].mT).to(dtype)
    exact = [exact_gradient(*pair) for pair in zip(a, g, strict=True)]
    for name, root in roots.items():
        found = [gradient(root, *pair) for pair in zip(a, g, strict=True)]
        error = [(x - e).norm() / e.norm() for x, e in zip(found, exact, strict=True)]
        errors[name, dtype].append(torch.stack(error).median().item())

# %%
# By hand, every tenth of the gap costs a digit, in either precision. matroot loses none.

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
colors = {"eigh by hand": "tab:red", "svd by hand": "tab:orange", "matroot": "black"}
for (name, dtype), error in errors.items():
    style = "-" if dtype == torch.float32 else "--"
    axes.loglog(gaps[dtype], error, style, marker="o", markersize=3, color=colors[name])
notes = [
    (4e-9, 1e-1, "float32, eigh and svd by hand", "tab:red"),
    (1e-1, 2e-8, "float32, matroot", "black"),
    (2e-8, 2e-10, "float64, eigh and svd by hand", "tab:red"),
    (2e-8, 4e-15, "float64, matroot", "black"),
]
for x, y, text, color in notes:
    axes.text(x, y, text, color=color, va="center")
axes.set(xlabel="gap of two eigenvalues", ylabel="relative error of the gradient of the root")
axes.set_title("Every tenth of the gap costs gradients by hand a digit, matroot's none")
axes.invert_xaxis()
axes.spines[["top", "right"]].set_visible(False)

# %%
# At an exact tie nothing is left of it:

eye, ones = torch.eye(3), torch.ones(3, 3)
for name, root in roots.items():
    print(f"gradient at the identity, {name}:", gradient(root, eye, ones)[0].tolist())

# %%
# Ties are not rare: whitened features, isotropic noise, a ridge on a singular covariance and an
# initialisation at the identity all have them.

worst = {key: max(error) for key, error in errors.items()}
assert worst["matroot", torch.float32] < 1e-6
assert worst["matroot", torch.float64] < 1e-14
assert max(errors["eigh by hand", torch.float64]) > 1e-4
assert gradient(by_eigh, eye, ones).isnan().any()
assert torch.equal(gradient(matroot.sqrtm, eye, ones), ones / 2)
