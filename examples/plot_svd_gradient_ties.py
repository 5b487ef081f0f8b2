"""
What goes wrong with SVD gradients at ties
==========================================

Autograd through ``torch.linalg.eigh`` or ``torch.linalg.svd`` divides by differences of
eigenvalues, ``1/(λ_i - λ_j)``. The square root itself has no trouble where they
coincide: its gradient divides by sums, ``1/(√λ_i + √λ_j)``. Here two
eigenvalues approach each other, and the gradients are compared with one computed in 40 digits.
"""

import matplotlib.pyplot as plt
import mpmath
import torch

import matroot

# %%
# The square root by hand, in two ways, and matroot's.


def by_eigh(a):
    values, q = torch.linalg.eigh(a)
    return q @ torch.diag(values.sqrt()) @ q.T


def by_svd(a):
    u, values, vh = torch.linalg.svd(a)
    return u @ torch.diag(values.sqrt()) @ vh


roots = {"eigh by hand": by_eigh, "svd by hand": by_svd, "matroot": matroot.sqrtm}


def gradient(root, a, g):
    a = a.clone().requires_grad_()
    (found,) = torch.autograd.grad(root(a), a, g)
    return (found + found.T) / 2


def exact_gradient(a, g):
    """Of this very matrix, rounded as it is."""
    with mpmath.workdps(40):
        values, q = mpmath.eigsy(mpmath.matrix(a.tolist()))
        s = values.apply(mpmath.sqrt)
        h = q.T * mpmath.matrix(g.tolist()) * q
        for i in range(len(s)):
            for j in range(len(s)):
                h[i, j] /= s[i] + s[j]
        return torch.tensor((q * h * q.T).tolist(), dtype=torch.float64)


# %%
# Random 6×6 matrices with eigenvalues 1, 1 + gap, 1.4, 1.6, 1.8 and 2, of which only the gap is
# hard, down to some ten units of rounding. Each error is the median over several matrices.
repeats = 5
generator = torch.Generator().manual_seed(0)


def errors(gap, dtype):
    values = torch.tensor([1, 1 + gap, 1.4, 1.6, 1.8, 2], dtype=torch.float64)
    x, g = torch.randn(2, repeats, 6, 6, dtype=torch.float64, generator=generator)
    q = torch.linalg.qr(x).Q
    a, g = ((m + m.mT).to(dtype) for m in (q * values @ q.mT / 2, g))
    pairs = list(zip(a, g, strict=True))
    exact = torch.stack([exact_gradient(*pair) for pair in pairs])
    found = [torch.stack([gradient(f, *pair) for pair in pairs]) for f in roots.values()]
    scale = exact.norm(dim=(1, 2))
    return [((x - exact).norm(dim=(1, 2)) / scale).median() for x in found]


# %%
# By hand, eigenvalues ten times closer cost one more digit, in either precision; with matroot
# none.
figure, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
worst, colors = {}, ("tab:red", "tab:orange", "black")
for dtype, digits, line in ((torch.float32, 6, "-"), (torch.float64, 14, "--")):
    gaps = [10.0**-k for k in range(1, digits + 1)]
    curves = zip(*(errors(gap, dtype) for gap in gaps), strict=True)
    for name, color, curve in zip(roots, colors, curves, strict=True):
        ax.loglog(gaps, curve, line, marker="o", markersize=3, color=color)
        worst[name, dtype] = torch.stack(curve).nan_to_num(torch.inf).max()
ax.text(5e-7, 2e-2, "float32, eigh and svd by hand", color="tab:red", va="center")
ax.text(5e-7, 1e-7, "float32, matroot", va="center")
ax.text(2e-8, 3e-10, "float64, eigh and svd by hand", color="tab:red", va="center")
ax.text(2e-8, 4e-15, "float64, matroot", va="center")
ax.set(xlabel="gap between two eigenvalues", ylabel="relative error of the gradient")
ax.set_title("Ten times closer eigenvalues cost one more digit by hand, none with matroot")
ax.invert_xaxis()
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# At an exact tie no digit is left. Ties are not rare: whitened features, isotropic noise, a ridge
# under a covariance of few samples and an initialisation at the identity all have them.
eye, ones = torch.eye(3), torch.ones(3, 3)
for name, root in roots.items():
    print(f"gradient at the identity, {name}: {gradient(root, eye, ones)[0].tolist()}")

assert worst["matroot", torch.float32] < 1e-6
assert worst["matroot", torch.float64] < 1e-14
assert worst["eigh by hand", torch.float32] > 1e-2
assert worst["eigh by hand", torch.float64] > 1e-4
assert gradient(by_eigh, eye, ones).isnan().any()
assert torch.equal(gradient(matroot.sqrtm, eye, ones), ones / 2)
