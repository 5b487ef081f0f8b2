"""The folder of a run: what was asked for, the last checkpoint, and the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from matroot.files import replace
from matroot.recipes.training.configuration import read_text


class RunFolder:
    """Where a run keeps its files.

    Attributes:
        path: the folder.
        description: ``run.json``: what was asked for, and the data that it was trained on.
        checkpoint: ``last.ckpt``, written after each epoch.
        result: ``result.json``, written at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description: Path = path / "run.json"
        self.checkpoint: Path = path / "last.ckpt"
        self.result: Path = path / "result.json"

    def earlier_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The description of the run that the folder holds; empty where it holds none.

        Args:
            asked: what is asked for now. A larger number of epochs continues the run; where
                ``sync_whitening`` is None it fits any run.

        Raises:
            ValueError: the folder holds another run; both values are named.
        """
        if not (self.checkpoint.exists() or self.result.exists()):
            return {}
        known = read_json(self.description)
        old, new = known.get("config"), asked["config"]
        items, root = known.get("items", [0, 0, 0]), known.get("data_root")
        counts = isinstance(items, list) and [type(count) for count in items] == [int] * 3
        if not (isinstance(old, dict) and counts and isinstance(root, str | None)):
            raise ValueError(f"{self.description}: expected what 'matroot train' has written there")
        # Until it was described each process had its own statistics.
        known.setdefault("sync_whitening", False)
        pairs = [(name, known.get(name), asked[name]) for name in asked if name != "config"]
        pairs += [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
        different = [
            f"{name} ({there} there, {wanted} asked for)"
            for name, there, wanted in pairs
            if there != wanted
            and not (name == "epochs" and isinstance(there, int) and there < wanted)
            and not (name == "sync_whitening" and None in (there, wanted))
        ]
        if different:
            raise ValueError(
                f"{self.path} holds a run with another {', '.join(different)}; "
                "choose another folder"
            )
        return known

    def check_data(self, known: dict[str, Any], items: list[int], root: str | None) -> None:
        """Raise ValueError where the run that the folder holds was trained on other data.

        Args:
            known: see ``earlier_run``.
            items: sizes of training and test set, number of classes.
            root: the folder that data are read from.
        """
        if known.get("items", items) != items:
            raise ValueError(
                f"{self.path} holds a run with other data: {_counted(known['items'])} in "
                f"{known.get('data_root')}, {_counted(items)} in {root}; choose another folder"
            )

    def start(self, description: dict[str, Any]) -> None:
        """Write the description, and remove the result of fewer epochs."""
        self.path.mkdir(parents=True, exist_ok=True)
        # First: beside the description of more epochs it would pass for their result.
        self.result.unlink(missing_ok=True)
        replace(self.description, json.dumps(description))


def _counted(items: list[int]) -> str:
    return "{} items for training, {} for test, {} classes".format(*items)


def read_json(file: Path) -> dict[str, Any]:
    """What a run has written into ``file``.

    Raises:
        ValueError: the file is missing, or holds something else.
    """
    try:
        found = json.loads(read_text(file))
    except (FileNotFoundError, json.JSONDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected what 'matroot train' has written there")
    return found


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint of ``train``, on the CPU; no code in it is run, nothing compressed is unpacked.

    Raises:
        ValueError: the file is no such checkpoint, or broken.
    """
    try:
        # As torch.save writes it: what it takes in memory then is what it takes on the disk.
        with ZipFile(file) as parts:
            if any(part.compress_type != ZIP_STORED for part in parts.infolist()):
                raise BadZipFile
        found: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        if found.keys() >= {"state_dict", "epoch", "loops", "pytorch-lightning_version"}:
            return found
    except Exception:  # PyTorch's unpickler raises whatever the bytes run into.
        pass
    raise ValueError(f"{file}: expected a checkpoint of 'matroot train'; delete it to start anew")
