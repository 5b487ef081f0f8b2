"""Configurations of all applications that train in a second."""

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


def quick(name, tmp_path, folder="run", **options):
    changes = QUICK[name] | options.pop("changes", {})
    config = load_config(name, "small", changes)
    return train(name, config, tmp_path / folder, progress=False, accelerator="cpu", **options)
