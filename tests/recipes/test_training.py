"""Training the applications: configurations, the loop, resuming, errors."""

import functools
import itertools
import json
import math
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from PIL import Image
from typer.testing import CliRunner

from matroot.cli import app
from matroot.nn import CovariancePooling2d, DecorrelatedBatchNorm2d
from matroot.recipes import compare, dbn, embedded, gcp, sovit, video
from matroot.recipes.catalogue import APPLICATIONS, configurations
from matroot.recipes.methods import NAMES, layer_options
from matroot.recipes.style.learner import rate_schedule as style_rate_schedule
from matroot.recipes.training.classifier import Classifier, rate_schedule
from matroot.recipes.training.configuration import load_config
from matroot.recipes.training.loop import train

QUICK = {
    "dbn": {"epochs": 2, "size": 8, "batch_size": 32},
    "gcp": {"epochs": 2, "size": 16, "widths": [8, 8, 8, 16], "reduced": 8, "batch_size": 32},
    "sovit": {
        "epochs": 2,
        "size": 16,
        "depth": 1,
        "width": 16,
        "features": 8,
        "batch_size": 32,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
    "video": {
        "epochs": 2,
        "frames": 4,
        "size": 16,
        "widths": [8, 8, 8, 8],
        "reduced": [8],
        "batch_size": 16,
    },
    "style": {
        "epochs": 2,
        "pairs": 8,
        "size": 32,
        "test_size": 48,
        "width": 4,
        "filters": 8,
        "batch_size": 4,
    },
}
SLOW = pytest.mark.slow
MEASURES = ("accuracy", "test_loss", "loss", "improvement")


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """Every tenth picture, which is enough to see that things work."""
    for name in ("digits", "textures"):
        whole = getattr(embedded, name)

        def part(*arguments, whole=whole):
            x, y = whole(*arguments).tensors
            return torch.utils.data.TensorDataset(x[::10].clone(), y[::10])

        monkeypatch.setattr(embedded, name, part)
    few_clips = functools.partial(embedded.motions, count=12)
    monkeypatch.setattr(embedded, "motions", few_clips)


def quick(name, tmp_path, folder="run", **options):
    changes = QUICK[name] | options.pop("changes", {})
    config = load_config(name, "small", changes)
    return train(name, config, tmp_path / folder, progress=False, accelerator="cpu", **options)


def combinations():
    """Every method with every application; in each run every one of both at least once."""
    for method, name in itertools.product(NAMES, APPLICATIONS):
        often = name == "gcp" or method == "auto" or (name, method) == ("video", "svd")
        yield pytest.param(name, method, marks=() if often else SLOW)


@pytest.mark.parametrize(("name", "method"), combinations())
def test_every_method_trains_every_application(name, method, tmp_path):
    if (name, method) in (("gcp", "svd"), ("video", "svd")):
        # Channels that never fire, or are more than positions, repeat the lowest eigenvalue, where
        # the textbook gradient is infinite.
        with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
            quick(name, tmp_path, method=method, changes={"epochs": 1})
        return
    result = quick(name, tmp_path, method=method, changes={"epochs": 1})
    assert result["epochs"] == 1
    assert all(math.isfinite(result[key]) for key in MEASURES if key in result)
    assert set(MEASURES) & result.keys() >= {"loss"}
    assert json.loads((tmp_path / "run/result.json").read_text()) == result


class PowerCut(Exception):
    pass


class Interrupt(Callback):
    """Ends a run in the middle of its second epoch."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 1:
            raise PowerCut


class EpochsBegun(Callback):
    def __init__(self):
        self.begun = []

    def on_train_epoch_start(self, trainer, module):
        self.begun.append(trainer.current_epoch)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dbn", {}),
        ("style", {}),
        ("sovit", {"average": 0.9}),
        *(pytest.param(name, {}, marks=SLOW) for name in ("sovit", "gcp", "video")),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_result(name, changes, tmp_path):
    whole = quick(name, tmp_path, "whole", changes=changes)
    with pytest.raises(PowerCut):
        quick(name, tmp_path, "parts", callbacks=[Interrupt()], changes=changes)
    assert not (tmp_path / "parts/result.json").exists()
    resumed = EpochsBegun()
    second = quick(name, tmp_path, "parts", callbacks=[resumed], changes=changes)
    assert resumed.begun == [1]
    for key in set(MEASURES) & whole.keys():
        assert second[key] == whole[key]
    states = [
        torch.load(tmp_path / folder / "last.ckpt", weights_only=True)["state_dict"]
        for folder in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_averaged_weights_are_the_mean_that_they_should_be(tmp_path):
    """Of three steps, decay ½: a quarter of the first two each, half of the third."""
    weights = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            weights.append(module.model.head.class_fc.weight.detach().clone())

    changes = {"average": 0.5, "epochs": 1, "batch_size": 60}
    quick("sovit", tmp_path, changes=changes, callbacks=[Watch()])
    assert len(weights) == 3
    state = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["state_dict"]
    (averaged,) = (v for k, v in state.items() if k.endswith("head.class_fc.weight"))
    expected = weights[0] / 4 + weights[1] / 4 + weights[2] / 2
    torch.testing.assert_close(averaged, expected)


def test_logs(tmp_path):
    quick("gcp", tmp_path, changes={"epochs": 1}, tensorboard=True)
    assert "accuracy" in (tmp_path / "run/logs/version_0/metrics.csv").read_text()
    assert list((tmp_path / "run/tensorboard/version_0").glob("events.out.tfevents.*"))


def test_seeds_differ_and_repeat(tmp_path):
    found = [quick("gcp", tmp_path, str(i), seed=s)["loss"] for i, s in enumerate((0, 0, 1))]
    assert found[0] == found[1] != found[2]


def test_a_folder_holds_one_run(tmp_path):
    quick("gcp", tmp_path, changes={"epochs": 1})
    with pytest.raises(ValueError, match="holds a run with another method"):
        quick("gcp", tmp_path, method="mpa", changes={"epochs": 1})


def test_what_differs_is_named_with_both_values(tmp_path):
    quick("gcp", tmp_path, changes={"epochs": 1})
    with pytest.raises(ValueError) as raised:
        quick("gcp", tmp_path, changes={"epochs": 1, "eps": 0.5, "mixup": 0.1}, seed=3)
    assert str(raised.value).endswith(
        "run holds a run with another seed (0 there, 3 asked for), eps (0.0 there, 0.5 asked for), "
        "mixup (0.0 there, 0.1 asked for); choose another folder"
    )


@pytest.mark.parametrize("name", ["gcp", "style"])
def test_a_finished_run_takes_more_epochs(name, tmp_path):
    first = quick(name, tmp_path, changes={"epochs": 1})
    resumed = EpochsBegun()
    second = quick(name, tmp_path, changes={"epochs": 3}, callbacks=[resumed])
    assert (first["epochs"], second["epochs"], resumed.begun) == (1, 3, [1, 2])
    assert second["config"]["epochs"] == 3
    assert second["loss"] != first["loss"]
    assert json.loads((tmp_path / "run/result.json").read_text()) == second
    # The rate takes the course of three epochs, which has come to its end.
    state = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    rates = [group["lr"] for o in state["optimizer_states"] for group in o["param_groups"]]
    assert max(rates) < 1e-3 * load_config(name, "small").learning_rate
    assert quick(name, tmp_path, changes={"epochs": 3}) == second
    with pytest.raises(ValueError, match=r"another epochs \(3 there, 2 asked for\)"):
        quick(name, tmp_path, changes={"epochs": 2})


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_course_of_the_rate_is_that_of_torch(schedule, warmup):
    changes = {"epochs": 6, "schedule": schedule, "milestones": [3, 5], "warmup_epochs": warmup}
    share = rate_schedule(load_config("gcp", "small", changes), 60)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    rates = torch.optim.lr_scheduler
    main = rates.CosineAnnealingLR(optimizer, 60 - 10 * warmup)
    if schedule == "steps":
        main = rates.MultiStepLR(optimizer, [30 - 10 * warmup, 50 - 10 * warmup])
    if warmup:
        first = rates.LinearLR(optimizer, 1e-3, total_iters=10 * warmup)
        main = rates.SequentialLR(optimizer, [first, main], [10 * warmup])
    for step in range(60):
        assert share(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        main.step()


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_the_course_of_style_is_one_cycle(steps):
    share = style_rate_schedule(steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, steps, pct_start=0.15, cycle_momentum=False
    )
    for step in range(steps):
        assert share(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step + 1 < steps:
            cycle.step()


def pictures(root, count=20, parts=("train", "val")):
    """Few, small, of two classes."""
    for part, (value, label) in itertools.product(parts, enumerate(("cat", "dog"))):
        (root / part / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 20), (100 * value + i,) * 3).save(
                root / part / label / f"{i}.png"
            )
    return root


@pytest.mark.parametrize("name", APPLICATIONS)
def test_a_data_root_is_used_or_refused(name, tmp_path):
    quick_one = functools.partial(quick, name, tmp_path, changes={"epochs": 1})
    for root in (pictures(tmp_path / "data"), tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"are embedded, .* would go unused; .*--set data="):
            quick_one(root=root)
    assert not (tmp_path / "run").exists()
    # Nor does a run that is finished take it without a word.
    if name == "gcp":
        quick_one()
        with pytest.raises(ValueError, match="would go unused"):
            quick_one(root=tmp_path / "data")


@pytest.mark.parametrize("name", ["dbn", "gcp", "sovit"])
def test_folders_of_ones_own(name, tmp_path):
    changes = {"epochs": 1, "data": "folder", "batch_size": 20}
    told = functools.partial(quick, name, tmp_path, changes=changes)
    result = told(root=pictures(tmp_path / "data"))
    assert result["config"]["data"] == "folder"
    with pytest.raises(ValueError, match="nowhere is no folder"):
        quick(name, tmp_path, "b", changes=changes, root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="give it with --data-root"):
        quick(name, tmp_path, "b", changes=changes)


def test_data_that_have_moved_and_data_that_are_others(tmp_path, capsys):
    changes = {"epochs": 1, "data": "folder", "batch_size": 20}
    told = functools.partial(quick, "gcp", tmp_path, changes=changes)
    result = told(root=pictures(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "moved")
    assert told(root=tmp_path / "moved") == result
    said = capsys.readouterr().out
    assert f"data are read from {tmp_path / 'moved'}, before from {tmp_path / 'data'}" in said
    with pytest.raises(ValueError, match=r"with other data: 40 items .* 38 items for training"):
        told(root=pictures(tmp_path / "other", count=19))


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(gcp, "datasets", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match="cannot be written"):
        quick("gcp", tmp_path, "file/run")
    with pytest.raises(ValueError, match="cannot be written"):
        compare.compare("gcp", load_config("gcp", "small"), ["auto"], 1, tmp_path / "file/run")


def test_help_teaches_the_fields():
    text = CliRunner().invoke(app, ["train", "--help"]).output
    for name in APPLICATIONS:
        assert all(config in text for config in configurations(name))
    assert "--set data=folder --data-root DIR" in text
    text = CliRunner().invoke(app, ["compare", "sovit", "--help"]).output
    lines = [line.split() for line in text.splitlines()]
    assert ["positions", "fixed|learned", "fixed", "fixed"] in lines
    assert ["epochs", "int,", "≥", "1", "(none)", "10"] in lines
    fields = sovit.Settings.model_fields
    assert set(fields) <= {line[0] for line in lines if line}


def test_a_mistake_takes_no_folder(tmp_path):
    with pytest.raises(ValueError, match="make no batch"):
        quick("gcp", tmp_path, changes={"batch_size": 100000})
    assert quick("gcp", tmp_path, changes={"epochs": 1})["epochs"] == 1


def test_another_precision_is_another_run(tmp_path):
    quick("gcp", tmp_path, changes={"epochs": 1})
    with pytest.raises(ValueError, match="holds a run with another precision"):
        quick("gcp", tmp_path, changes={"epochs": 1}, precision="bf16-mixed")


def test_a_run_cut_before_its_result_has_it_later(tmp_path):
    whole = quick("gcp", tmp_path)
    (tmp_path / "run/result.json").unlink()
    assert quick("gcp", tmp_path) == whole


def test_numbers_that_are_not_finite_are_no_result(tmp_path):
    changes = {"head": "class-token", "learning_rate": 1e9, "epochs": 1}
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="loss is nan"):
            quick("sovit", tmp_path, changes=changes)
        assert not (tmp_path / "run/result.json").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK", pickle.dumps(print, 2), None], ids=["empty", "cut", "pickle", "other"]
)
def test_a_broken_checkpoint_is_named(content, tmp_path):
    quick("gcp", tmp_path, changes={"epochs": 1})
    (tmp_path / "run/result.json").unlink()
    file = tmp_path / "run/last.ckpt"
    if content is None:
        torch.save({"state_dict": {}}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt: expected a checkpoint"):
        quick("gcp", tmp_path, changes={"epochs": 1})


def test_a_broken_run_is_named(tmp_path):
    quick("gcp", tmp_path, changes={"epochs": 1})
    (tmp_path / "run/run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run\.json: expected what 'matroot train' has written"):
        quick("gcp", tmp_path, changes={"epochs": 1})


def test_flat_pictures_have_an_improvement(tmp_path, monkeypatch):
    flat = [torch.full((3, 64, 64), 90, dtype=torch.uint8)] * 2
    monkeypatch.setattr(embedded, "photos", lambda part: (flat, flat))
    assert quick("style", tmp_path, changes={"epochs": 1})["improvement"] > 0


def program(folder):
    script = folder / "program.py"
    # Where these tests run in the background, a shell has made their children ignore SIGINT.
    listen = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script.write_text(f"{listen}from matroot.cli import main\nmain()\n")
    return [sys.executable, str(script)]


@pytest.mark.parametrize("name", ["style", pytest.param("gcp", marks=SLOW)])
def test_two_processes_give_one_result(name, tmp_path):
    changes = QUICK[name] | {"epochs": 1}
    told = [f"--set={k}={json.dumps(v)}" for k, v in changes.items()]
    options = ["--devices=2", "--accelerator=cpu", "--no-progress", f"-o{tmp_path / 'run'}"]
    command = [*program(tmp_path), "train", name, *told, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("result {") == 1
    assert json.loads((tmp_path / "run/result.json").read_text())["epochs"] == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=SLOW)],
)
def test_a_run_that_is_stopped_says_so(sent, status, tmp_path):
    command = [*program(tmp_path), "train", "gcp", "--no-progress"]
    with subprocess.Popen(
        [*command, f"-o{tmp_path / 'run'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        while not list(tmp_path.glob("run/logs/*")):
            time.sleep(0.1)
            assert run.poll() is None
        time.sleep(2)
        run.send_signal(sent)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == status
    assert errors.count("\n") <= 2
    assert "matroot: interrupted; the same command goes on" in errors


@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_named_configuration_fits(name):
    assert "small" in configurations(name)
    for config in configurations(name):
        load_config(name, config)


def test_the_published_networks():
    options = layer_options("mpa", None, 1e-2)
    network = dbn.build(load_config("dbn", "cifar10-resnet18"), 10, options)
    assert isinstance(network.bn1, DecorrelatedBatchNorm2d)
    assert (network.bn1.groups, network.bn1.eps) == (1, 1e-2)
    assert network.conv1.stride == (1, 1)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    network = gcp.build(load_config("gcp", "imagenet-resnet50"), 1000, layer_options("mpa"))
    assert isinstance(network.global_pool, CovariancePooling2d)
    assert network.fc.in_features == 256 * 257 // 2
    features = network.eval().forward_features(torch.randn(1, 3, 224, 224))
    assert features.shape == (1, 2048, 14, 14)


@pytest.mark.parametrize(("depth", "features"), [(7, 48), (10, 48), (14, 64), (19, 96)])
def test_the_published_sovit(depth, features):
    config = load_config("sovit", f"imagenet-{depth}")
    network = sovit.build(config, 10, layer_options("mpa")).eval()
    assert len(network.blocks) == depth
    assert network.patch_embed.grid_size == (14, 14)
    pooling = network.head.pooling
    x = torch.randn(1, 3, 224, 224)
    assert pooling.features(network.forward_features(x)[:, 1:]).shape == (1, features, 196)
    assert network.head.visual_fc.in_features == features * (features + 1) // 2
    assert network(x).shape == (1, 10)


def test_sovit_without_its_second_order_part():
    """The same transformer: only the covariance and its linear layer are gone."""
    whole, plain = (
        sovit.build(load_config("sovit", "small", {"head": head}), 10, {}).state_dict()
        for head in ("second-order", "class-token")
    )
    assert {k: v.shape for k, v in whole.items() if not k.startswith("head.")} == {
        k: v.shape for k, v in plain.items() if not k.startswith("head.")
    }
    assert plain["head.weight"].shape == whole["head.class_fc.weight"].shape


def test_positions_of_sovit_are_fixed_or_learned():
    for positions, learned in (("fixed", False), ("learned", True)):
        config = load_config("sovit", "small", {"positions": positions})
        assert sovit.build(config, 10, {}).pos_embed.requires_grad == learned


def test_mixed_pictures_and_labels():
    config = load_config("sovit", "small", {"mixup": 0.8, "cutmix": 1.0})
    module = Classifier(torch.nn.Flatten(), config, 4, 0)
    x, y = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 3, 4, 4), torch.arange(8) % 4
    kinds = set()
    for _ in range(20):
        mixed, labels = module.mix(x, y)
        assert labels.shape == (8, 4)
        torch.testing.assert_close(labels.sum(1), torch.ones(8))
        # Mixup leaves the constant pictures constant, CutMix makes patches.
        kinds.add(bool((mixed == mixed[..., :1, :1]).all()))
    assert kinds == {True, False}
    assert Classifier(torch.nn.Flatten(), load_config("gcp", "small"), 4, 0).mix is None


def small_video(**changes):
    torch.manual_seed(0)
    config = load_config("video", "small", {"differences": False} | changes)
    network = video.build(config, 10, {}).eval()
    # timm's residual blocks start as nothing but their shortcut.
    for layer in network.frame_network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(layer.weight)
    return network


@torch.no_grad()
def test_a_video_without_time_is_the_mean_over_its_frames():
    network = small_video(pooling="average", excitation=False)
    x = torch.randn(2, 3, 6, 32, 32)
    frames = [network.fc(network.frame_network(x[:, :, t])) for t in range(6)]
    torch.testing.assert_close(network(x), torch.stack(frames).mean(0))
    torch.testing.assert_close(network(x.flip(2)), network(x))


@torch.no_grad()
@pytest.mark.parametrize("part", ["excitation", "differences"])
def test_the_order_of_frames_is_seen(part):
    network = small_video(pooling="average", **({"excitation": False} | {part: True}))
    x = torch.randn(2, 3, 6, 32, 32)
    assert (network(x.flip(2)) - network(x)).abs().max() > 1e-4
    # Clips of a batch do not see each other.
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_excitation_starts_as_a_shift_where_nothing_changes():
    layer = video.Excitation(16, 4).eval()
    torch.nn.init.zeros_(layer.expand.weight)
    torch.nn.init.zeros_(layer.expand.bias)
    x = torch.randn(8, 16, 5, 5)
    y, x = layer(x).unflatten(0, (2, 4)), x.unflatten(0, (2, 4))
    assert torch.equal(y[:, 1:, :2], x[:, :-1, :2])
    assert torch.equal(y[:, :-1, 2:4], x[:, 1:, 2:4])
    assert torch.equal(y[:, :, 4:], x[:, :, 4:])


@pytest.mark.parametrize("name", ["hmdb51", "ucf101"])
def test_the_published_video_network(name, tmp_path, monkeypatch):
    def read(root, frames, split, training, test):
        clip = torch.randint(256, (frames, 3, 48, 64), dtype=torch.uint8)
        return *([(change(clip).transpose(0, 1), 0)] for change in (training, test)), split

    monkeypatch.setattr(video.clips, name, read)
    changes = {"size": 32, "pretrained": False, "split": 2}
    config = load_config("video", f"{name}-resnet50", changes)
    training, test, classes = video.datasets(config, tmp_path)
    assert classes == 2
    for ((x, _),) in (training, test):
        assert (x.shape, x.dtype) == ((3, 8, 32, 32), torch.float32)
    network = video.build(config, 51, layer_options("mpa")).eval()
    assert network.fc.in_features == 128 * 129 // 2
    assert sum(isinstance(m, video.Excitation) for m in network.modules()) == 16
    assert network(x[None]).shape == (1, 51)


@pytest.mark.parametrize("data", ["digits", "textures"])
def test_train_and_test_are_apart(data):
    train_x, test_x = (
        getattr(embedded, data)(part).tensors[0].flatten(1) for part in ("train", "test")
    )
    assert torch.cdist(train_x, test_x).min() > 0


def test_motions_are_seen_and_their_photographs_apart():
    assert not set(embedded.SCENES["train"]) & set(embedded.SCENES["test"])
    for part in ("train", "test"):
        x, y = embedded.motions(part, count=7).tensors
        assert y.bincount().tolist() == [7] * 10
        assert x[:, :, 4].mean(1).flatten(1).std(1).min() > 0.02


def test_motions_move_as_they_say():
    x, y = embedded.motions("test", count=4).tensors
    assert x.shape == (40, 3, 8, 32, 32)
    still = x[y == 0]
    assert torch.equal(still[:, :, 0], still[:, :, -1])
    # What pans left shows later what lies to the left: the picture moves right.
    left = x[y == embedded.MOTIONS.index("pan left")]
    shifts = []
    for clip in left:
        first, last = clip[:, 3], clip[:, 4]
        errors = {s: (first.roll(s, 2) - last)[:, :, 4:-4].square().mean() for s in range(-3, 4)}
        shifts.append(min(errors, key=errors.get))
    assert sum(s > 0 for s in shifts) >= 3
    assert all(s >= 0 for s in shifts)


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments), "--no-progress"])


def test_the_command_ends_with_the_result(tmp_path):
    arguments = ["gcp", "-o", tmp_path / "a", "--method", "mpa", "--eps", "1e-3", "--seed", "3"]
    changes = [f"--set={k}={json.dumps(v)}" for k, v in (QUICK["gcp"] | {"epochs": 1}).items()]
    found = run(*arguments, *changes)
    assert found.exit_code == 0, found.output
    last = found.output.strip().splitlines()[-1]
    assert last.startswith("result {")
    result = json.loads(last.removeprefix("result "))
    assert (result["method"], result["seed"], result["config"]["eps"]) == ("mpa", 3, 1e-3)
    assert 0 <= result["accuracy"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cnn"], "unknown application 'cnn'; known: dbn, sovit, gcp"),
        (["dbn", "--config", "big"], "no configuration 'big' of dbn"),
        (["dbn", "--method", "lu"], "unknown method 'lu'; known: auto, svd"),
        (["dbn", "--gradient", "x"], "unknown gradient 'x'"),
        (["dbn", "--method", "pi", "--gradient", "lyapunov"], "takes no gradient rule"),
        (["dbn", "--set", "epochs"], "expected FIELD=VALUE, got 'epochs'"),
        (["dbn", "--set", "epochs=many"], "epochs: Input should be a valid integer"),
        (["dbn", "--set", "colour=1"], "colour: no such field (fields: data, eps, batch_"),
        (["dbn", "--set", "epoch=1"], "epoch: no such field; did you mean 'epochs'? (fields: data"),
        (["dbn", "--set", "eps=1", "--eps", "2"], "--eps and --set eps say the same"),
        (["gcp", "--method", "pi", "--eps", "1e-3"], "--eps does nothing with --method pi"),
        (["gcp", "--set", "pooling=average", "--method", "mpa"], "nothing with pooling=average"),
        (
            ["gcp", "--set", "pooling=average", "--eps", "1"],
            "eps does nothing with pooling=average",
        ),
        (["video", "--set", "pooling=average", "--method", "ns"], "nothing with pooling=average"),
        (["sovit", "--set", "head=class-token", "--method", "ns"], "with head=class-token"),
        (
            ["style", "--set", "filters=8", "--set", "sweeps=0"],
            "filters does nothing with sweeps=0",
        ),
        (["gcp", "--set", "milestones=[2]"], "milestones does nothing with schedule=cosine"),
        (["dbn", "--set", "epochs=0"], "epochs: Input should be greater than or equal to 1"),
        (["dbn", "--set", "batch_size=100000"], "items for training make no batch of 100000"),
        (["dbn", "--devices", "none"], "should be an int"),
        (["sovit", "--set", "heads=5"], "no network of sovit can be built like this: dim"),
        (["gcp", "--set", "backbone=x"], "no network of gcp can be built like this: Unknown model"),
        (["dbn", "--config", "cifar10-resnet18"], "give it with --data-root"),
        (
            ["gcp", "--config", "imagenet-resnet50", "--data-root", "nowhere"],
            "nowhere is no folder",
        ),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path):
    found = run(*arguments, "-o", tmp_path / "a")
    assert isinstance(found.exception, (ValueError, SystemExit))
    assert message in str(found.exception)
    assert "\n" not in str(found.exception)


def test_configurations_are_safe_yaml(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="no valid YAML"):
        load_config("dbn", str(file))
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="expected fields and values, got list"):
        load_config("dbn", str(file))
    own = yaml.safe_load((tmp_path / "own.yaml").read_text())
    assert own == [1, 2]
