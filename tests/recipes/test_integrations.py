"""The blocks of docs/integrations.md run, and do what the page says."""

import subprocess
import sys
import warnings

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pages
from matroot import frechet_distance_from_features
from matroot.nn import DecorrelatedBatchNorm2d

PAGE = "integrations.md"
LIGHTNING, FID, HUGGING_FACE = pages.blocks(PAGE)


@pytest.fixture(scope="module")
def names():
    return pages.run(PAGE, FID, pages.run(PAGE, LIGHTNING, {}))


QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer():
    return lightning.Trainer(devices=1, **QUIET)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_the_module_of_lightning_trains(names):
    model = names["SecondOrder"]()
    (layer,) = (m for m in model.modules() if isinstance(m, DecorrelatedBatchNorm2d))
    assert (layer.eps, layer.process_group) == (1e-2, "world")
    before = model.head.weight.clone()
    data = TensorDataset(torch.randn(16, 3, 12, 12), torch.arange(16) % 10)
    trained = trainer()
    trained.fit(model, DataLoader(data, 8))
    assert trained.global_step == 2
    assert trained.callback_metrics["loss"].isfinite()
    assert not torch.equal(model.head.weight, before)
    assert not torch.equal(layer.running_covariance, torch.eye(32)[None])


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_the_metric_of_lightning_is_the_distance(names):
    def features(pictures):
        return pictures.mean((2, 3))

    model = names["Generator"](features, 3)
    pictures = torch.rand(12, 3, 16, 16)
    loop = trainer()
    made = []
    model.network.register_forward_hook(lambda *call: made.append(call[2]))
    (found,) = loop.validate(model, DataLoader(TensorDataset(pictures), 5), verbose=False)
    assert [len(batch) for batch in made] == [5, 5, 2]
    expected = frechet_distance_from_features(features(pictures), features(torch.cat(made)))
    assert found["fid"] == pytest.approx(expected.item(), rel=1e-4)
    assert not any(name.startswith("fid") for name in model.state_dict())


@pytest.mark.slow
def test_two_processes_of_lightning_share_their_statistics(tmp_path):
    script = tmp_path / "script.py"
    options = ", ".join(f"{name}={value!r}" for name, value in QUIET.items())
    script.write_text(
        f"""{LIGHTNING}
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(16, 3, 12, 12), torch.arange(16) % 10)
torch.manual_seed(0)
model = SecondOrder()
torch.manual_seed(0)
data = TensorDataset(torch.randn(16, 3, 12, 12), torch.arange(16) % 10)
trainer = lightning.Trainer(devices=2, strategy="ddp", {options})
trainer.fit(model, DataLoader(data, 8))
if trainer.is_global_zero:
    torch.save(model.network[1].running_mean, {str(tmp_path / "mean.pt")!r})
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "this process's samples" not in done.stderr
    names = {}
    pages.run(PAGE, LIGHTNING, names)
    torch.manual_seed(0)
    model = names["SecondOrder"]()
    torch.manual_seed(0)
    model.network(torch.randn(16, 3, 12, 12))
    # Of one step, and of the samples of both.
    torch.testing.assert_close(torch.load(tmp_path / "mean.pt"), model.network[1].running_mean)


def test_the_classifier_of_texts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
    names = pages.run(PAGE, HUGGING_FACE, pages.run(PAGE, LIGHTNING, {}))
    model, tokens, mask = names["model"], names["tokens"], names["mask"]
    for name, parameter in model.named_parameters():
        if "pooler" not in name:  # The encoder's own, which is not used.
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    # In double precision: the covariances are singular, and the root of a 0 amplifies rounding.
    model.eval().double()
    logits = model(tokens, mask).logits
    # What stands in the padding is no matter, nor how long it is.
    other = torch.cat([tokens.where(mask.bool(), 99), torch.full((2, 3), 7)], 1)
    longer = torch.cat([mask, torch.zeros(2, 3, dtype=torch.long)], 1)
    torch.testing.assert_close(model(other, longer).logits, logits, rtol=1e-4, atol=1e-5)
    assert (model(tokens, torch.ones_like(mask)).logits - logits)[0].abs().max() > 1e-3
    with pytest.raises(ValueError, match="leaves no sample"):
        model(tokens, torch.zeros_like(mask))
