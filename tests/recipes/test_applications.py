"""Style transfer, and the comparison of methods; test_training.py trains all applications."""

import json
import math

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from matroot import bures_wasserstein_distance
from matroot.cli import app
from matroot.nn import CovariancePooling2d, DecorrelatedBatchNorm2d, WhiteningColoring2d
from matroot.nn.functional import inverse_root
from matroot.recipes import compare, style
from matroot.recipes.methods import NAMES, layer_options
from matroot.recipes.style import learner
from matroot.recipes.style.networks import Generator
from matroot.recipes.training.configuration import load_config
from matroot.statistics import moments
from matroot.testing import random_spd

TINY = {
    "epochs": 1,
    "pairs": 4,
    "size": 32,
    "test_size": 48,
    "width": 4,
    "filters": 8,
    "batch_size": 2,
}


def tiny(**changes):
    return load_config("style", "small", TINY | changes)


@pytest.mark.parametrize("cycle", [False, True])
def test_both_directions_are_trained(cycle):
    network = style.Learner(tiny(cycle=cycle), layer_options("auto", None, 1e-5))
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    directions = network._directions(x, y)
    assert len(directions) == (2 if cycle else 1)
    sum(network._loss(d, network._make(d)) for d in directions).backward()
    learned = {name for name, p in network.generators.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in network.generators.named_parameters()}
    if cycle:
        assert directions[0].generator is directions[1].source is not directions[1].generator


def test_the_style_encoder_does_not_pool():
    network = Generator(tiny(), layer_options("auto", None, 1e-5))
    y = torch.rand(1, 3, 32, 48)
    assert network.style(y).shape == (1, 16, 8, 12)
    assert network.content(y).shape == (1, 16, 8, 12)


def test_the_published_generator():
    config = load_config("style", "artworks")
    network = Generator(config, layer_options("mpa", None, config.eps))
    transforms = [m for m in network.modules() if isinstance(m, WhiteningColoring2d)]
    assert [t.num_features for t in transforms] == [256] * 5
    assert all(t.groups == 1 and t.eps == 1e-5 for t in transforms)


def test_the_encoder_of_styles_does_not_learn_from_the_style_loss():
    network = Generator(tiny(), layer_options("auto", None, 1e-5))
    made = torch.rand(1, 3, 16, 16, requires_grad=True)
    learner._frozen(network.style, made).sum().backward()
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.style.parameters())


def test_style_loss_is_the_distance_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 4, 5, 7, generator=generator) for _ in range(2))
    y = 2 * y + 1
    a, b = (torch.cov(t.flatten(1), correction=0) for t in (x[0], y[0]))
    means = (x.mean((2, 3)) - y.mean((2, 3))).square().sum()
    expected = (means + bures_wasserstein_distance(a, b, eps=1e-4)) / 4
    torch.testing.assert_close(learner.style_loss(x, y), expected)
    assert learner.style_loss(x, x) < 1e-5


def folders(root, names=("trainA", "trainB", "testA", "testB")):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(2):
            Image.effect_noise((70 + i, 60), 50).convert("RGB").save(root / name / f"{j}.png")
    return root


def test_unpaired_folders(tmp_path):
    root = folders(tmp_path / "data")
    (root / "trainA/notes.txt").write_text("no picture")
    training, test, *_ = style.datasets(tiny(data="folder"), root)
    assert (len(training), len(test)) == (4, 4)
    x, y = training[1]
    assert x.shape == y.shape == (3, 32, 32)
    assert -1 <= x.min() < x.max() <= 1
    assert test[3][0].shape == (3, 48, 48)
    with pytest.raises(ValueError, match="expected a folder of pictures"):
        style.datasets(tiny(data="folder"), folders(tmp_path / "other", ("trainA", "trainB")))


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def size(file):
    with Image.open(file) as picture:
        return picture.size


def changes(**more):
    return [f"--set={name}={json.dumps(value)}" for name, value in (TINY | more).items()]


def test_train_then_stylize_with_the_network(tmp_path):
    found = run("train", "style", "-o", tmp_path / "run", "--no-progress", *changes())
    assert found.exit_code == 0, found.output
    assert "LPIPS is left out" in found.output
    result = json.loads(found.output.strip().splitlines()[-1].removeprefix("result "))
    assert result["improvement"] > 0
    assert size(tmp_path / "run/pictures.png")[0] > 500
    Image.effect_noise((71, 50), 50).convert("RGB").save(tmp_path / "a.png")
    Image.effect_noise((60, 81), 50).convert("RGB").save(tmp_path / "b.png")
    files = [tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "c.png"]
    found = run("stylize", *files, "--network", tmp_path / "run")
    assert found.exit_code == 0, found.output
    assert size(tmp_path / "c.png") == (71, 50)
    found = run("stylize", *files, "--network", tmp_path)
    assert "expected run.json and last.ckpt" in str(found.exception)
    # The same picture by the other command, and the measure of the test set.
    paint = ["predict", tmp_path / "run", tmp_path / "a.png", "--device", "cpu"]
    found = run(*paint, "--style", tmp_path / "b.png", "-o", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert (tmp_path / "out/a-b.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    assert "needs --style PICTURE" in str(run(*paint).exception)
    # Of a folder with folders in it; what is painted there is not painted again.
    (tmp_path / "all/deep").mkdir(parents=True)
    (tmp_path / "a.png").rename(tmp_path / "all/deep/a.png")
    paint[2], output = tmp_path / "all", tmp_path / "all/painted"
    for _ in range(2):
        found = run(*paint, "--style", tmp_path / "b.png", "-o", output)
        assert found.exit_code == 0, found.output
        assert [file.name for file in output.iterdir()] == ["a-b.png"]
    found = run("evaluate", tmp_path / "run", "--device", "cpu")
    assert found.exit_code == 0, found.output
    measured = json.loads((tmp_path / "run/evaluation/evaluation.json").read_text())
    for key in ("improvement", "least_improvement"):
        assert measured[key] == pytest.approx(result[key], rel=1e-3)
    assert size(tmp_path / "run/evaluation/pictures.png")[0] > 500


def test_compare_prints_the_table_and_resumes(tmp_path):
    arguments = ["compare", "style", "-o", tmp_path, "--methods", "auto, pi", "--seeds", "2"]
    found = run(*arguments, *changes())
    assert found.exit_code == 0, found.output
    assert "run 4 of 4: pi, seed 1" in found.output
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert [row["method"] for row in rows] == ["auto", "pi"]
    for row in rows:
        assert row["runs"] == 2
        assert row["root_ms"] > 0
        assert row["improvement_std"] >= 0
        assert f"| {row['method']} |" in found.output
    assert size(tmp_path / "compare.png")[0] > 500
    # Finished runs are not trained again: their files do not change.
    file = tmp_path / "pi-1/result.json"
    before = file.stat().st_mtime_ns
    again = run(*arguments, *changes())
    assert again.exit_code == 0
    assert file.stat().st_mtime_ns == before


def test_compare_reports_failures(tmp_path, monkeypatch):
    def train(name, config, folder, *, method, **options):
        if method == "svd":
            raise torch.linalg.LinAlgError("sqrtm: the gradient is not finite\nmore")
        return {"accuracy": 0.75, "test_loss": 0.5, "step_ms": 3.0, "seed": options["seed"]}

    monkeypatch.setattr(compare, "train", train)
    monkeypatch.setattr(compare, "_times", lambda *_: [1.5, math.nan])
    config = load_config("dbn", "small")
    rows = compare.compare("dbn", config, ["auto", "svd"], 2, tmp_path)
    assert rows[0]["error"] == 25
    assert rows[0]["error_std"] == 0
    assert rows[1]["runs"] == 0
    text = (tmp_path / "compare.md").read_text()
    assert "| auto | 1.50 | 3 | 25.00 ± 0.00 | 0.500 ± 0.000 |" in text
    assert "| svd | – | – | – | – (failed: sqrtm: the gradient is not finite) |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "auto,lu"], "unknown method 'lu'"),
        (["--methods", " , "], "no methods"),
        (["--set", "size=33"], "multiple of 4"),
    ],
)
def test_compare_errors_are_one_line(arguments, message, tmp_path):
    found = run("compare", "style", "-o", tmp_path, *arguments)
    assert message in str(found.exception)
    assert "\n" not in str(found.exception)


def test_roots_are_those_of_the_layers():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 5)
    layer = DecorrelatedBatchNorm2d(6, group_size=3, eps=1e-2)
    pooling = CovariancePooling2d(6, 4, eps=1e-3)
    coloring = WhiteningColoring2d(6, groups=2)
    network = torch.nn.ModuleList([layer, pooling, coloring])
    seen = []
    monitored = torch.nn.Module.__call__
    taken = compare.roots(
        network, lambda: seen.extend([monitored(layer, x), pooling(x), coloring(x, 2 * x)])
    )
    assert [(r.kind, tuple(r.covariance.shape), r.eps) for r in taken] == [
        ("inv_sqrt", (2, 3, 3), 1e-2),
        ("sqrt", (4, 4, 4), 1e-3),
        ("inv_sqrt", (4, 2, 3, 3), 1e-5),
        ("sqrt", (4, 2, 3, 3), 1e-5),
    ]
    # Whitening by this root gives what the layer gave.
    samples = x.transpose(0, 1).reshape(2, 3, -1)
    white = inverse_root(taken[0].covariance, 1e-2) @ moments(samples).centered
    expected = white.reshape(6, 4, 5, 5).transpose(0, 1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_every_method_is_timed():
    taken = [compare.Root(kind, random_spd(8, 3, cond=10), 1e-3) for kind in ("sqrt", "inv_sqrt")]
    times = compare.root_times(taken, NAMES, None)
    assert len(times) == len(NAMES)
    assert all(ms > 0 for ms in times)
