"""
Exporting to ONNX and running it
================================

A module that calls matroot exports like any other: the root becomes matrix products with a fixed
schedule of steps. Here each picture's features are whitened by their own covariance, and ONNX
Runtime is compared with PyTorch.
"""

import matplotlib.pyplot as plt
import onnxruntime
import torch

import matroot


class Whiten(torch.nn.Module):
    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        covariance = x @ x.mT / x.shape[-1]
        return matroot.inv_sqrtm(covariance) @ x


# %%
# The number of pictures stays open. Channels and positions are those of the example.
x = torch.randn(2, 16, 196)
program = torch.onnx.export(
    Whiten().eval(),
    (x,),
    input_names=["x"],
    dynamic_shapes=({0: "pictures"},),
    dynamo=True,
    verbose=False,
)
session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
operators = sorted({node.op_type for node in program.model_proto.graph.node})
print(f"{len(program.model_proto.SerializeToString()) / 1e3:.0f} kB:", *operators)

# %%
# Features of 300 pictures, with channels that depend on each other more and more.
torch.manual_seed(0)
wanted = torch.logspace(0.5, 5.5, 300, dtype=torch.float64)
scales = wanted[:, None] ** torch.linspace(0, -0.5, 16, dtype=torch.float64)
mixing = torch.linalg.qr(torch.randn(300, 16, 16, dtype=torch.float64)).Q * scales[:, None]
features = (mixing @ torch.randn(300, 16, 196, dtype=torch.float64)).float()

# %%
# One file for batches of 1, 99 and 200 pictures. The reference is the same module in float64.
batches = [
    torch.from_numpy(session.run(None, {"x": batch.numpy()})[0])
    for batch in features.split([1, 99, 200])
]
outputs = {"ONNX Runtime": torch.cat(batches), "PyTorch": Whiten()(features)}
reference = Whiten()(features.double())
condition = torch.linalg.cond(torch.stack([x.cov() for x in features.double()]))


def error(y):
    return (y - reference).norm(dim=(1, 2)) / reference.norm(dim=(1, 2))


errors = {name: error(y) for name, y in outputs.items()}

# %%
# Both lose what rounding a covariance to float32 costs: a digit for every tenfold condition number.
figure, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
for name, color, y in (("ONNX Runtime", "tab:red", 1e-4), ("PyTorch", "black", 2e-6)):
    ax.loglog(condition, errors[name], ".", markersize=4, color=color)
    ax.text(3e3, y, name, color=color, ha="center")
ax.set(xlabel="condition number of a picture's covariance")
ax.set(ylabel="relative error of the output")
ax.set_title("ONNX Runtime agrees with PyTorch to the rounding of float32")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

ratio = (errors["ONNX Runtime"] / errors["PyTorch"]).median()
print(f"error of ONNX Runtime over that of PyTorch, median: {ratio:.1f}")
assert ratio < 4
assert (errors["ONNX Runtime"] < 1e-6 * condition).all()
