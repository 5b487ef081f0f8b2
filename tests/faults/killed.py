"""A command that is killed at each of its file operations in turn, until it comes to its end.

python killed.py COMMAND FOLDER STRIDE: prints how often it was killed. Every attempt is a fork of
this process, which has loaded what takes long, and finds what the one before left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from PIL import Image

from bench.examples import counted, row
from matroot import cli
from matroot.bench import paper, rows, rules
from matroot.recipes import images
from matroot.recipes import stylize as recipe
from matroot.recipes.training import loop
from matroot.recipes.training.folder import read_checkpoint
from recipes.short import QUICK

TOLD = [f"--set={k}={json.dumps(v)}" for k, v in (QUICK["gcp"] | {"epochs": 1}).items()]
TOLD += ["--no-progress", "--accelerator=cpu"]
COMMANDS = {
    "stylize": ["stylize", "{0}/in/a.png", "{0}/in/b.png", "-o", "{0}/out/c.png"],
    "demo": ["demo", "-o", "{0}/out"],
    "rows": ["bench", "paper", "--quick", "--only", "mae", "-o", "{0}/out/rows.jsonl"],
    "report": ["bench", "report", "{0}/in/rows.jsonl", "-o", "{0}/out"],
    "train": ["train", "gcp", "-o", "{0}/out", *TOLD],
    "compare": ["compare", "gcp", "--methods=auto,mpa", "--seeds=1", "-o", "{0}/out", *TOLD],
}
# Audit events of what changes a file; see "Audit events table" in Python's documentation.
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def prepare(folder: Path) -> None:
    """What the commands read, and short work for them."""
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    for name, seed in (("a", 0), ("b", 1)):
        noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))
        images.save_image((255 * noise).byte(), folder / f"in/{name}.png")
    rows.append(folder / "in/rows.jsonl", [row(), row("other")])
    images.CONTENTS = ("astronaut",)
    images.SHEET_STYLES = {"wood": images.SHEET_STYLES["wood"]}
    images.photograph = lambda name: images.load_image(folder / "in/a.png")[0]
    images.sheet_style = lambda name: images.load_image(folder / "in/b.png")[0]
    measured = rules.Row("sqrt", "eigh", "spectral", 1e-7, 1e-6, 1.0, 0.9, 1.1)
    rules.measure = lambda covariances, progress: [measured]
    paper.EXPERIMENTS["mae"] = lambda settings: counted("xyz", [])


def run(command: str, folder: Path) -> None:
    """Run a command of this table."""
    sys.argv[1:] = [word.format(folder) for word in COMMANDS[command]]
    cli.app(standalone_mode=False)


def kill_at(moment: int, folder: Path) -> None:
    """End this process by SIGKILL before its file operation of that number in the folder."""
    left = moment

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event not in CHANGES or not str(arguments[0]).startswith(str(folder / "out")):
            return
        reading = event == "open" and not int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        left -= not reading
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def check(folder: Path) -> None:
    """Every file that does not begin with a dot is whole."""
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file() or "logs" in path.parts:
            continue
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".json":
            assert json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                assert json.loads(line)
        elif path.suffix == ".ckpt":
            read_checkpoint(path)
        elif path.suffix == ".html":
            assert path.read_text().endswith("</html>")
        else:
            assert path.stat().st_size, path


def main() -> None:
    """Kill the command at every STRIDE-th operation."""
    command, folder, stride = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    assert loop.train  # Loaded before the forks.
    assert recipe.stylize
    prepare(folder)
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            kill_at(1 + kills * stride, folder)
            try:
                run(command, folder)
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        check(folder)
        if status != -signal.SIGKILL:
            assert status == 0, status
            print(kills)
            return
        kills += 1


if __name__ == "__main__":
    main()
