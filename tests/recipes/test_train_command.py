"""``matroot train`` on the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from matroot.cli import app
from matroot.recipes import sovit
from matroot.recipes.catalogue import APPLICATIONS, configurations
from recipes.short import QUICK

pytestmark = pytest.mark.usefixtures("few_pictures")
SLOW = pytest.mark.slow


def test_help_lists_the_fields():
    text = " ".join(CliRunner().invoke(app, ["train", "--help"]).output.split())
    for name in APPLICATIONS:
        assert all(config in text for config in configurations(name))
    assert "a list *.csv with the columns path, class and perhaps part" in text
    text = CliRunner().invoke(app, ["compare", "sovit", "--help"]).output
    lines = [line.split() for line in text.splitlines()]
    assert ["positions", "fixed|learned", "fixed", "fixed"] in lines
    assert ["epochs", "int,", "≥", "1", "(none)", "10"] in lines
    fields = sovit.Settings.model_fields
    assert set(fields) <= {line[0] for line in lines if line}


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
        (["gcp", "--sync-whitening"], "--sync-whitening does nothing with gcp, which has no"),
        (["sovit", "--no-sync-whitening"], "--no-sync-whitening does nothing with sovit"),
        (["sovit", "--set", "heads=5"], "no network of sovit can be built like this: dim"),
        (["gcp", "--set", "backbone=x"], "no network of gcp can be built like this: Unknown model"),
        (["dbn", "--config", "cifar10-resnet18"], "give it with --data-root"),
        (
            ["gcp", "--config", "imagenet-resnet50", "--data-root", "nowhere"],
            "nowhere is not a folder",
        ),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path):
    found = run(*arguments, "-o", tmp_path / "a")
    assert isinstance(found.exception, (ValueError, SystemExit))
    assert message in str(found.exception)
    assert "\n" not in str(found.exception)


def program(folder):
    script = folder / "program.py"
    # Where these tests run in the background, a shell has made their children ignore SIGINT.
    listen = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script.write_text(f"{listen}from matroot.cli import main\nmain()\n")
    return [sys.executable, str(script)]


@pytest.mark.parametrize(
    ("name", "synchronised"),
    [
        pytest.param("dbn", True, marks=SLOW),
        pytest.param("gcp", None, marks=SLOW),
        ("style", None),
    ],
)
def test_two_processes_give_one_result(name, synchronised, tmp_path):
    changes = QUICK[name] | {"epochs": 1}
    told = [f"--set={k}={json.dumps(v)}" for k, v in changes.items()]
    options = ["--devices=2", "--accelerator=cpu", "--no-progress", f"-o{tmp_path / 'run'}"]
    command = [*program(tmp_path), "train", name, *told, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("result {") == 1
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["epochs"], result["sync_whitening"]) == (1, synchronised)
    assert "mean and covariance of this process's samples" not in done.stderr


@SLOW
@pytest.mark.parametrize("launch", ["torchrun", "two machines"])
def test_other_launchers_start_the_same_run(launch, tmp_path):
    told = [f"--set={k}={json.dumps(v)}" for k, v in (QUICK["dbn"] | {"epochs": 1}).items()]
    arguments = ["train", "dbn", *told, "--accelerator=cpu", "--no-progress", f"-o{tmp_path / 'a'}"]
    script = program(tmp_path)
    if launch == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        commands = [([*torchrun, "--nproc-per-node=2", script[1], *arguments, "--devices=2"], {})]
    else:
        # As torchrun starts one process on each.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        one = [*script, *arguments, "--devices=1", "--num-nodes=2"]
        places = [{"NODE_RANK": str(i), "LOCAL_RANK": "0", "WORLD_SIZE": "2"} for i in range(2)]
        commands = [(one, where | place) for place in places]
    running = [
        subprocess.Popen(command, env=os.environ | place, stdout=subprocess.PIPE, text=True)
        for command, place in commands
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    results = [line for text in said for line in text.splitlines() if line.startswith("result {")]
    (result,) = results
    assert json.loads(result.removeprefix("result "))["sync_whitening"] is True


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=SLOW)],
)
def test_a_stopped_run_prints_one_line(sent, status, tmp_path):
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
