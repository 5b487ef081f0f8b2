"""Measure what docs/layers.md says, and write its tables and plots.

python benchmarks/layers.py measure    some fifteen minutes on two cores; rows to benchmarks/results
python benchmarks/layers.py write      tables into docs/layers.md, plots into docs/images
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import timm
import torch
from numerics import COLORS, IMAGES, ROOT, command, figure, fill, interleaved, load, table
from torch import Tensor, nn
from torch.nn import functional as F

import matroot
from matroot.bench.baselines import eigh_by_hand
from matroot.bench.plots import label_ends, plain_ticks
from matroot.bench.rows import Row, pick
from matroot.gradients import Lyapunov
from matroot.methods import METHODS
from matroot.nn import CovariancePooling2d, DecorrelatedBatchNorm2d, convert_batchnorm
from matroot.nn.functional import whiten_and_color
from matroot.recipes.images import CONTENTS, STYLES, photograph
from matroot.statistics import moments
from matroot.testing import exact, exact_gradient, relative_error

ROWS = ROOT / "benchmarks/results/layers-cpu.jsonl"
PAGE = ROOT / "docs/layers.md"
NAMES = CONTENTS + STYLES
SIZE = 32  # pixels of a patch
SEEDS = range(3)


@cache
def patches(part: str, count: int = 250) -> tuple[Tensor, Tensor]:
    """Patches of eight photographs, and from which each is; train and test from halves apart."""
    generator = torch.Generator().manual_seed(0 if part == "train" else 1)
    x, y = [], []
    for label, name in enumerate(NAMES):
        picture = photograph(name).float() / 255
        middle = picture.shape[2] // 2
        half = picture[:, :, :middle] if part == "train" else picture[:, :, middle:]
        for _ in range(count):
            i, j = (int(torch.randint(s - SIZE, (), generator=generator)) for s in half.shape[1:])
            x.append(half[:, i : i + SIZE, j : j + SIZE])
            y.append(label)
    order = torch.randperm(len(x), generator=generator)
    return torch.stack(x)[order], torch.tensor(y)[order]


def trained(model: nn.Module, *, seed: int, steps: int, batch: int, rate: float) -> Row:
    """Train to tell the photographs apart; errors on the halves not seen, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    x, y = patches("train")
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        index = torch.randint(len(x), (batch,), generator=generator)
        flipped = x[index].flip(-1) if torch.rand((), generator=generator) < 0.5 else x[index]
        loss = F.cross_entropy(model(flipped), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        found = [
            (model(u), v) for u, v in zip(*(t.split(250) for t in patches("test")), strict=True)
        ]
    wrong = sum(int((u.argmax(1) != v).sum()) for u, v in found)
    total = sum(len(v) for _, v in found)
    return {
        "train_loss": float(loss.detach()),
        "test_loss": float(sum(F.cross_entropy(u, v, reduction="sum") for u, v in found)) / total,
        "test_error": wrong / total,
    }


def residual(seed: int, **options: Any) -> nn.Module:
    """ResNet-18 for small pictures, its first normalisation as asked: the paper's first network."""
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=len(NAMES))
    model.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    return convert_batchnorm(model, **options) if options else model


def whitening() -> Iterator[Row]:
    """ResNet-18 with its first normalisation replaced: ridge, groups, statistics, method."""
    plain: list[tuple[str, Any, Row, int]] = [("batch normalisation", None, {}, 32)]
    ridges = [("eps", e, {"eps": e}, 32) for e in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
    sizes = [("group_size", s, {"group_size": s, "eps": 1e-2}, 32) for s in (1, 4, 16, 32, 64)]
    kinds = [
        ("running", f"{kind}, batch {batch}", {"running": kind, "eps": 1e-2}, batch)
        for kind in ("covariance", "whitening")
        for batch in (8, 32)
    ]
    methods = [("method", m, {"method": m, "eps": 1e-2}, 32) for m in METHODS]
    for (study, value, options, batch), seed in itertools.product(
        plain + ridges + sizes + kinds + methods, SEEDS
    ):
        model = residual(seed, **options)
        found = trained(model, seed=seed, steps=100 * 32 // batch, batch=batch, rate=0.05)
        yield {"kind": "whitening", "study": study, "value": value, "seed": seed, **found}


def pooling() -> Iterator[Row]:
    """A small network with covariance pooling: what is done to the covariance, and how."""
    variants: list[tuple[str, Any, Row | None]] = [
        ("pooling", "average", None),
        *(("pooling", n, {"normalization": n}) for n in ("none", "power", "sqrt")),
        *(("eps", e, {"eps": e}) for e in (0.0, 1e-5, 1e-3, 1e-1)),
        *(("shrinkage", s, {"shrinkage": s}) for s in ("none", 0.1, "oas", "ledoit_wolf")),
        *(("center", c, {"center": c}) for c in (True, False)),
        *(("method", m, {"method": m}) for m in METHODS),
    ]
    for (study, value, options), seed in itertools.product(variants, SEEDS):
        if options == {"shrinkage": "none"}:
            options = {}
        torch.manual_seed(seed)
        width = 32
        head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        features = 96
        if options is not None:
            layer = CovariancePooling2d(96, width, **options)
            head, features = [layer], layer.out_features
        model = nn.Sequential(
            *(_block(3, 48), _block(48, 96)), *head, nn.Linear(features, len(NAMES))
        )
        found = trained(model, seed=seed, steps=200, batch=32, rate=0.1)
        yield {"kind": "pooling", "study": study, "value": value, "seed": seed, **found}


def _block(before: int, after: int) -> nn.Module:
    convolution = nn.Conv2d(before, after, 5, stride=2, padding=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def shrinkage() -> Iterator[Row]:
    """Roots of covariances of few samples against those of very many: 4×4 patches, n = 48."""
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        picture = photograph(name).float()[None] / 255
        rows = F.unfold(picture, 4)[0].double()
        truth = moments(rows).covariance
        root = exact(truth)
        for share, rule in itertools.product(
            (0.5, 1, 2, 4, 16), (None, 0.05, "oas", "ledoit_wolf")
        ):
            errors, spreads = [], []
            for _ in range(20):
                index = torch.randint(rows.shape[1], (int(48 * share),), generator=generator)
                c = moments(rows[:, index], shrinkage=rule).covariance
                errors.append(float(relative_error(matroot.sqrtm(c), root)))
                z = matroot.inv_sqrtm(c, eps=1e-5)
                # What whitening by the estimate makes of all the samples.
                white = z @ (truth + 1e-5 * torch.eye(48)) @ z
                spreads.append(float(torch.linalg.eigvalsh(white)[-1]))
            yield {
                "kind": "shrinkage",
                "picture": name,
                "samples": share,
                "rule": str(rule),
                "error": sum(errors) / 20,
                "largest": math.exp(sum(map(math.log, spreads)) / 20),
            }


def coloring() -> Iterator[Row]:
    """WCT of random features of photographs, n = 64: distance to the style's covariance."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 64, 5, stride=2)
    for (content, style), eps in itertools.product(
        itertools.product(CONTENTS, STYLES), (0.0, 1e-7, 1e-5, 1e-3, 1e-1)
    ):
        with torch.no_grad():
            x, s = (layer(photograph(n)[None].float() / 255).relu() for n in (content, style))
        goal = moments(s[0].flatten(1).double()).covariance
        for method in ("auto", "minimax", "pade", "newton_schulz"):
            y = whiten_and_color(x, s, eps=eps, method=method)
            before, after = (
                float(
                    matroot.bures_wasserstein_distance(
                        moments(t[0].flatten(1).double()).covariance, goal, squared=False
                    )
                )
                for t in (x, y)
            )
            yield {
                "kind": "coloring",
                "content": content,
                "style": style,
                "eps": eps,
                "method": method,
                "before": before,
                "after": after,
                "largest": float(y.abs().max() / s.abs().max()),
            }


def accuracy() -> Iterator[Row]:
    """The inverse root of a real first layer's covariance by every method: value and gradient."""
    x, _ = patches("train")
    for eps in (1e-5, 1e-2):
        torch.manual_seed(0)
        with torch.no_grad():
            features = nn.Conv2d(3, 64, 3, padding=1, bias=False)(x[:128])
        c = moments(features.transpose(0, 1).flatten(1)).covariance
        ridged = c.double() + eps * torch.eye(64)
        values = torch.linalg.eigvalsh(ridged)
        g = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
        for name in ("auto", *METHODS):
            rule: Any = Lyapunov(steps=8) if name in ("taylor", "pade") else "auto"
            a = c.clone().requires_grad_()
            z = matroot.inv_sqrtm(a, eps=eps, method=name, gradient=rule)
            (dz,) = torch.autograd.grad(z, a, g)
            z = z.detach().double()
            yield {
                "kind": "accuracy",
                "eps": eps,
                "cond": float(values[-1] / values[0]),
                "rank": int((torch.linalg.eigvalsh(c.double()) > 1e-5 * values[-1]).sum()),
                "method": name,
                "error": float(relative_error(z, exact(ridged, "inv_sqrt"))),
                "gradient_error": float(relative_error(dz, exact_gradient(ridged, g, "inv_sqrt"))),
                "white": float(torch.linalg.matrix_norm(z @ ridged @ z - torch.eye(64))) / 8,
            }


class _ByHand(CovariancePooling2d):
    """The same layer with the root by torch.linalg.eigh and division by s_i + s_j."""

    def _normalized(self, covariance: Tensor) -> Tensor:
        return eigh_by_hand(covariance)


class _NoRoot(DecorrelatedBatchNorm2d):
    """The same layer with the root left out."""

    def _whitening(self, covariance: Tensor, rounding: float | Tensor = 1.0) -> Tensor:
        return covariance


def speed() -> Iterator[Row]:
    """Forward and backward of layers, interleaved."""
    for shape in ((32, 48, 14, 14), (64, 64, 14, 14), (64, 128, 7, 7)):
        candidates = {"eigh by hand": _ByHand, "default": CovariancePooling2d}
        runs = {k: cls(shape[1]) for k, cls in candidates.items()}
        runs |= {m: CovariancePooling2d(shape[1], method=m) for m in ("pade", "newton_schulz")}
        yield from _timed("covariance pooling", shape, runs, 25)
    for size in (64, 16):
        runs = {
            "batch normalisation": nn.BatchNorm2d(64),
            "no root": _NoRoot(64, group_size=size),
            "default": DecorrelatedBatchNorm2d(64, group_size=size),
        }
        yield from _timed(f"whitening, groups of {size}", (128, 64, 32, 32), runs, 25)


def _timed(
    what: str, shape: tuple[int, ...], layers: dict[str, nn.Module], repeats: int
) -> Iterator[Row]:
    torch.manual_seed(0)
    x = torch.randn(shape).relu_().requires_grad_()
    runs: dict[str, Callable[[], object]] = {}
    for name, layer in layers.items():
        g = torch.randn_like(layer(x))
        runs[name] = partial(_forward_backward, layer, x, g)
    for name, (p20, median, p80) in interleaved(runs, repeats).items():
        row = {"layer": what, "shape": list(shape), "candidate": name}
        yield {"kind": "speed", **row, "ms": median, "p20": p20, "p80": p80}


def _forward_backward(layer: nn.Module, x: Tensor, g: Tensor) -> None:
    torch.autograd.grad(layer(x), [x, *layer.parameters()], g)


PARTS = {
    "accuracy": accuracy,
    "speed": speed,
    "shrinkage": shrinkage,
    "coloring": coloring,
    "pooling": pooling,
    "whitening": whitening,
}


def accuracy_table(rows: list[Row]) -> str:
    """Methods at two ridges."""
    body = []
    for name in ("auto", *METHODS):
        cells = []
        for eps in (1e-5, 1e-2):
            row = pick(rows, kind="accuracy", method=name, eps=eps)[0]
            cells += [f"{row[k]:.1e}" for k in ("error", "gradient_error", "white")]
        body.append([f"`{name}`", *cells])
    conds = [pick(rows, kind="accuracy", method="auto", eps=e)[0]["cond"] for e in (1e-5, 1e-2)]
    heads = [
        f"{what}, eps {eps:g} (κ {cond:.0e})"
        for eps, cond in zip((1e-5, 1e-2), conds, strict=True)
        for what in ("root", "gradient", "not white")
    ]
    return table(["method", *heads], body)


def trained_table(rows: list[Row], kind: str) -> str:
    """Means and standard deviations over the seeds."""
    body, seen = [], set()
    for row in pick(rows, kind=kind):
        key = (row["study"], row["value"])
        if key in seen:
            continue
        seen.add(key)
        same = pick(rows, kind=kind, study=row["study"], value=row["value"])
        errors = torch.tensor([100 * r["test_error"] for r in same])
        losses = [sum(r[k] for r in same) / len(same) for k in ("test_loss", "train_loss")]
        value = "" if row["value"] is None else f"`{row['value']}`"
        cells = [f"{errors.mean():.1f} ± {errors.std():.1f}", *(f"{x:.2f}" for x in losses)]
        body.append([row["study"], value, *cells])
    return table(["", "", "error, %", "test loss", "training loss"], body)


def shrinkage_means(rows: list[Row], field: str) -> dict[tuple[float, str], float]:
    """Geometric means over the photographs, by samples and rule."""
    found: dict[tuple[float, str], list[float]] = {}
    for row in pick(rows, kind="shrinkage"):
        found.setdefault((row["samples"], row["rule"]), []).append(math.log(row[field]))
    return {key: math.exp(sum(x) / len(x)) for key, x in found.items()}


def shrinkage_table(rows: list[Row]) -> str:
    """Error of the root, and how far whitening overshoots."""
    errors, largest = (shrinkage_means(rows, field) for field in ("error", "largest"))
    rules, shares = ("None", "0.05", "oas", "ledoit_wolf"), (0.5, 1, 2, 4, 16)
    body = [
        [f"`{r}`", *(f"{100 * errors[s, r]:.0f} %, {largest[s, r]:.3g}" for s in shares)]
        for r in rules
    ]
    return table(["shrinkage", *(f"m = {s:g} n" for s in shares)], body)


def coloring_table(rows: list[Row]) -> str:
    """Distance left, and the largest number, by ridge and method."""
    body = []
    for eps in (0.0, 1e-7, 1e-5, 1e-3, 1e-1):
        cells = []
        for method in ("auto", "minimax", "pade", "newton_schulz"):
            same = pick(rows, kind="coloring", eps=eps, method=method)
            left = sum(math.log(r["after"] / r["before"]) for r in same) / len(same)
            most = max(r["largest"] for r in same)
            cells.append(f"{100 * math.exp(left):.2g} %, {most:.2g}")
        body.append([f"{eps:g}", *cells])
    return table(["eps", "`auto`", "`minimax`", "`pade`", "`newton_schulz`"], body)


def speed_table(rows: list[Row]) -> str:
    """Milliseconds, and the ratio that the page speaks of."""
    body = []
    for row in pick(rows, kind="speed"):
        same = pick(rows, kind="speed", layer=row["layer"], shape=row["shape"])
        base = "no root" if row["layer"].startswith("whitening") else "eigh by hand"
        ratio = pick(same, candidate=base)[0]["ms"] / row["ms"]
        shape = "×".join(map(str, row["shape"]))
        cells = [f"{row['ms']:.2f}", f"{row['p20']:.2f}–{row['p80']:.2f}", f"{ratio:.2f}"]
        body.append([row["layer"], shape, row["candidate"], *cells])
    return table(["layer", "input", "", "ms", "20–80 %", "times as fast as its base"], body)


def plot(rows: list[Row]) -> None:
    """Ridge and error; shrinkage and error."""
    result = figure(10, 4)
    left, right = result.subplots(1, 2)
    found = pick(rows, kind="whitening", study="eps")
    points = sorted({row["value"] for row in found})
    errors = [
        torch.tensor([100 * row["test_error"] for row in found if row["value"] == point])
        for point in points
    ]
    means, spreads = [float(e.mean()) for e in errors], [float(e.std()) for e in errors]
    left.errorbar(points, means, spreads, marker="o", capsize=3)
    plain = [
        100 * r["test_error"] for r in pick(rows, kind="whitening", study="batch normalisation")
    ]
    normalized = sum(plain) / len(plain)
    left.axhline(normalized, color="0.4", ls="--")
    best = min(range(len(points)), key=means.__getitem__)
    left.set(xscale="log", xlabel="eps", ylabel="error on pictures not seen, %")
    left.set_title(
        f"Whitening: {means[best]:.0f} % of errors at eps = {points[best]:g}\n"
        f"Batch normalisation: {normalized:.0f} %",
        size=11,
    )
    left.set_ylim(bottom=0)
    plain_ticks(left.xaxis)
    label_ends(
        left,
        [
            ("whitening", "C0", points[-1], means[-1]),
            ("batch\nnormalisation", "0.4", points[-1], normalized),
        ],
        size=9,
    )
    largest = shrinkage_means(rows, "largest")
    shares = sorted({share for share, _ in largest})
    ends = []
    names = {"None": "no shrinkage", "0.05": "0.05", "oas": "oas", "ledoit_wolf": "ledoit_wolf"}
    for color, (rule, name) in zip(COLORS, names.items(), strict=False):
        values = [largest[share, rule] for share in shares]
        right.plot(shares, values, marker="o", color=color)
        ends.append((name, color, shares[-1], values[-1]))
    right.set(
        xscale="log",
        yscale="log",
        xlabel="samples per feature",
        ylabel="largest variance after whitening (ideal: 1)",
    )
    right.set_title(
        f"Few samples need shrinkage: a variance of {largest[shares[0], 'None']:.0f}\n"
        f"becomes {largest[shares[0], 'ledoit_wolf']:.0f} at {shares[0]:g} samples per feature",
        size=11,
    )
    right.set_xticks(shares, [f"{share:g}" for share in shares])
    right.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    right.minorticks_off()
    label_ends(right, ends, size=9)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    result.savefig(IMAGES / "layers.svg", metadata={"Date": None})


def write() -> None:
    """Tables and plot."""
    rows = load(ROWS)
    text = PAGE.read_text(encoding="utf-8")
    text = fill(text, "accuracy", accuracy_table(rows))
    text = fill(text, "whitening", trained_table(rows, "whitening"))
    text = fill(text, "pooling", trained_table(rows, "pooling"))
    text = fill(text, "shrinkage", shrinkage_table(rows))
    text = fill(text, "coloring", coloring_table(rows))
    text = fill(text, "speed", speed_table(rows))
    PAGE.write_text(text, encoding="utf-8")
    plot(rows)


if __name__ == "__main__":
    command(__doc__, ROWS, PARTS, write)
