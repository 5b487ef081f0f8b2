"""
Shampoo, an optimizer by inverse fourth roots
=============================================

Shampoo multiplies the gradient ``G`` of a matrix of weights from both sides: with
``L = Σ G G^T`` and ``R = Σ G^T G`` over the steps so far the step is ``L^{-1/4} G R^{-1/4}``. These
powers are ``matroot.powm(a, -1/4)``. As an optimizer of twenty lines:
"""

from functools import partial

import matplotlib.pyplot as plt
import torch

import matroot


class Shampoo(torch.optim.Optimizer):
    def __init__(self, params, lr, relative_eps=1e-6):
        super().__init__(params, {"lr": lr, "relative_eps": relative_eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                g, state = weight.grad, self.state[weight]
                if not state:
                    state["left"] = g.new_zeros(len(g), len(g))
                    state["right"] = g.new_zeros(g.shape[1], g.shape[1])
                state["left"] += g @ g.T
                state["right"] += g.T @ g
                # The sums are singular in the first steps, hence the ridge.
                left, right = (
                    matroot.powm(state[side], -1 / 4, relative_eps=group["relative_eps"])
                    for side in ("left", "right")
                )
                weight -= group["lr"] * left @ g @ right


# %%
# A linear layer is to learn the weights ``target``. Its 32 inputs are correlated, and errors in its
# 16 outputs count differently in different directions. Either alone has the condition number 100,
# so that of the loss is 10,000.
torch.manual_seed(0)


def stretched(n):
    rotation = torch.linalg.qr(torch.randn(n, n)).Q
    return rotation @ torch.diag(torch.logspace(-1, 0, n)) @ rotation.T


of_inputs, of_outputs, target = stretched(32), stretched(16), torch.randn(32, 16)


def train(method, lr, steps=200):
    """The exact loss before each step, which sees 64 random samples."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(32, 16, requires_grad=True)
    optimizer, losses = method([weight], lr=lr), []
    for _ in range(steps):
        error = of_inputs @ (weight - target) @ of_outputs
        losses.append(error.detach().square().sum().item() / 16)
        loss = (torch.randn(64, 32, generator=generator) @ error).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


# %%
# Each optimizer at the best of six learning rates. Adam scales single weights, which is no help
# where the difficult directions are mixtures of all. Shampoo finds such directions among the inputs
# and among the outputs, which is all there is to find here.
optimizers = {
    "SGD, momentum 0.9": (partial(torch.optim.SGD, momentum=0.9), (0.3, 1, 3, 6, 9, 12)),
    "Adam": (torch.optim.Adam, (0.03, 0.1, 0.2, 0.3, 0.6, 1)),
    "Shampoo": (Shampoo, (1, 3, 6, 10, 20, 30)),
}
last = {}
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for color, va, (name, (method, rates)) in zip(
    ("0.5", "C1", "C0"), ("bottom", "top", "bottom"), optimizers.items(), strict=True
):
    losses = min((train(method, lr) for lr in rates), key=lambda losses: losses[-1])
    last[name] = losses[-1]
    ax.semilogy(losses, color=color)
    offset = {"xytext": (0, 10 if va == "bottom" else -10), "textcoords": "offset points"}
    ax.annotate(name, (130, losses[130]), **offset, color=color, va=va)
ax.set(xlabel="steps", ylabel="loss", xlim=(0, 200))
ax.set_title("Condition number 10,000: Shampoo is the fastest by far")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# In a network each matrix of weights has its own ``L`` and ``R``. Their powers are then computed
# every ten steps or so, and ``matroot.distributed.map`` shares them out to several processes.
print({name: f"{loss:.0e}" for name, loss in last.items()})
assert last["Shampoo"] < 0.01 * last["Adam"]
