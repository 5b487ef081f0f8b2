"""Training the applications: configurations, the loop, resuming, errors."""

import functools
import itertools
import json
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from PIL import Image

from matroot.nn import whitening
from matroot.recipes import compare, embedded, gcp
from matroot.recipes.catalogue import APPLICATIONS, application, configurations
from matroot.recipes.methods import NAMES
from matroot.recipes.style.learner import rate_schedule as style_rate_schedule
from matroot.recipes.training import loop
from matroot.recipes.training.classifier import Classifier, rate_schedule
from matroot.recipes.training.configuration import load_config
from recipes.short import quick

pytestmark = pytest.mark.usefixtures("few_pictures")
SLOW = pytest.mark.slow
MEASURES = ("accuracy", "test_loss", "loss", "improvement")


def combinations():
    """Every method with every application; in each run every one of both at least once."""
    for method, name in itertools.product(NAMES, APPLICATIONS):
        often = name == "gcp" or method == "auto" or (name, method) == ("video", "svd")
        yield pytest.param(name, method, marks=() if often else SLOW)


@pytest.mark.parametrize(("name", "method"), list(combinations()))
def test_every_method_trains_every_application(name, method, tmp_path):
    if (name, method) in (("gcp", "svd"), ("video", "svd")):
        # Dead channels, or more channels than positions, repeat the lowest eigenvalue, where the
        # textbook gradient is infinite.
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
        ("style", {}),
        ("sovit", {"average": 0.9}),
        *(pytest.param(name, {}, marks=SLOW) for name in ("dbn", "sovit", "gcp", "video")),
    ],
)
def test_an_interrupted_run_continues_to_the_same_result(name, changes, tmp_path):
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


def test_averaged_weights_are_the_exponential_average(tmp_path):
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


def test_differences_are_named_with_both_values(tmp_path):
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
    # The rate follows the schedule of three epochs, to its end.
    state = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    rates = [group["lr"] for o in state["optimizer_states"] for group in o["param_groups"]]
    assert max(rates) < 1e-3 * load_config(name, "small").learning_rate
    assert quick(name, tmp_path, changes={"epochs": 3}) == second
    with pytest.raises(ValueError, match=r"another epochs \(3 there, 2 asked for\)"):
        quick(name, tmp_path, changes={"epochs": 2})


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_rate_schedule_is_that_of_torch(schedule, warmup):
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
def test_the_rate_schedule_of_style_is_one_cycle(steps):
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
    """A few small pictures of two classes."""
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
    # Nor does a finished run accept it.
    if name == "gcp":
        quick_one()
        with pytest.raises(ValueError, match="would go unused"):
            quick_one(root=tmp_path / "data")


@pytest.mark.parametrize("name", ["dbn", "gcp", "sovit"])
def test_own_folders(name, tmp_path):
    changes = {"epochs": 1, "data": "folder", "batch_size": 20}
    told = functools.partial(quick, name, tmp_path, changes=changes)
    result = told(root=pictures(tmp_path / "data"))
    assert result["config"]["data"] == "folder"
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        quick(name, tmp_path, "b", changes=changes, root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="give it with --data-root"):
        quick(name, tmp_path, "b", changes=changes)


def test_moved_data_and_other_data(tmp_path, capsys):
    changes = {"epochs": 1, "data": "folder", "batch_size": 20}
    told = functools.partial(quick, "gcp", tmp_path, changes=changes)
    result = told(root=pictures(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "moved")
    assert told(root=tmp_path / "moved") == result
    said = capsys.readouterr().out
    assert f"data are read from {tmp_path / 'moved'}, before from {tmp_path / 'data'}" in said
    with pytest.raises(ValueError, match=r"with other data: 40 items .* 38 items for training"):
        told(root=pictures(tmp_path / "other", count=19))


def test_an_unwritable_folder_is_found_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(gcp, "datasets", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match="cannot be written"):
        quick("gcp", tmp_path, "file/run")
    with pytest.raises(ValueError, match="cannot be written"):
        compare.compare("gcp", load_config("gcp", "small"), ["auto"], 1, tmp_path / "file/run")


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="make no batch"):
        quick("gcp", tmp_path, changes={"batch_size": 100000})
    assert quick("gcp", tmp_path, changes={"epochs": 1})["epochs"] == 1


def test_another_precision_is_another_run(tmp_path):
    quick("gcp", tmp_path, changes={"epochs": 1})
    with pytest.raises(ValueError, match="holds a run with another precision"):
        quick("gcp", tmp_path, changes={"epochs": 1}, precision="bf16-mixed")


def test_a_run_stays_with_one_kind_of_statistics(tmp_path, monkeypatch):
    def told(processes, epochs, **options):
        monkeypatch.setattr(loop, "_processes", lambda _: processes)
        changes = {"epochs": epochs}
        return quick("dbn", tmp_path, changes=changes, **options)["sync_whitening"]

    assert told(1, 1) is None
    assert told(2, 2) is True
    message = r"holds a run with another sync_whitening \(True there, False asked for\)"
    with pytest.raises(ValueError, match=message):
        told(2, 3, sync_whitening=False)
    # In one process there is no difference, but it is not forgotten.
    assert told(1, 3, sync_whitening=False) is True
    with pytest.raises(ValueError, match=message):
        told(2, 4, sync_whitening=False)
    # Of before it was recorded.
    description = tmp_path / "run/run.json"
    known = json.loads(description.read_text())
    del known["sync_whitening"]
    description.write_text(json.dumps(known))
    with pytest.raises(ValueError, match=r"sync_whitening \(False there, True asked for\)"):
        told(2, 4)
    assert told(2, 4, sync_whitening=False) is False


@pytest.mark.parametrize("name", APPLICATIONS)
def test_whitening_layers_are_known_of_and_synchronised(name, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(loop, "_processes", lambda _: 2)
    monkeypatch.setattr(loop, "_fit", lambda trainer, model, *_: made.append(model))
    monkeypatch.setattr(loop, "_result", lambda *_: {})
    monkeypatch.setattr(
        loop, "_trainer", lambda *_, **__: SimpleNamespace(is_global_zero=False, current_epoch=0)
    )
    quick(name, tmp_path)
    (model,) = made
    layers = [m for m in model.modules() if isinstance(m, whitening._DecorrelatedBatchNorm)]
    assert bool(layers) == hasattr(application(name), "WHITENS")
    assert all(layer.process_group == "world" for layer in layers)


def test_a_run_without_its_result_gets_it_when_resumed(tmp_path):
    whole = quick("gcp", tmp_path)
    (tmp_path / "run/result.json").unlink()
    assert quick("gcp", tmp_path) == whole


def test_numbers_that_are_not_finite_are_an_error(tmp_path):
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


@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_named_configuration_fits(name):
    assert "small" in configurations(name)
    for config in configurations(name):
        load_config(name, config)


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


def test_configurations_are_safe_yaml(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_config("dbn", str(file))
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="expected fields and values, got list"):
        load_config("dbn", str(file))
    own = yaml.safe_load((tmp_path / "own.yaml").read_text())
    assert own == [1, 2]
