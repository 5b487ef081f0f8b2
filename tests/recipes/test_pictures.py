"""Data sets of pictures on disk, laid out as their archives unpack, with few and small ones."""

import hashlib
import itertools
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from typer.testing import CliRunner

from matroot.cli import app
from matroot.recipes import data, dbn, gcp
from matroot.recipes.training.configuration import load_config
from recipes.reading import as_read, one_line, replace


def write_picture(path, value, size=(40, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).convert(mode).save(path)


def values(dataset):
    """(Brightness, class) of each item, which identifies the pictures."""
    found = []
    for i in range(len(dataset)):
        x, y = dataset[i]
        assert (x.shape, x.dtype) == ((3, 30, 40), torch.uint8)
        found.append((round(x.float().mean().item()), y))
    return found


def write_cifar10(root, count=20):
    """CIFAR-10 as it is unpacked, with few pictures, and torchvision's checksums of these."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    sums = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {
            "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    names = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    (folder / "batches.meta").write_bytes(names)
    return sums, hashlib.md5(names).hexdigest()


def test_cifar_is_read_as_it_is_unpacked(tmp_path, monkeypatch):
    sums, of_names = write_cifar10(tmp_path)
    cifar = torchvision.datasets.CIFAR10
    names = [f"data_batch_{i}" for i in range(1, 6)]
    monkeypatch.setattr(cifar, "train_list", [[name, sums[name]] for name in names])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": of_names})
    config = load_config("dbn", "cifar10-resnet18")
    training, test, classes, *_ = dbn.datasets(config, tmp_path)
    assert (len(training), len(test), len(classes)) == (100, 20, 10)
    x, y = training[3]
    assert (x.shape, x.dtype, y) == ((3, 32, 32), torch.float32, 3)
    # A changed file is not read, and cannot be downloaded where there is no network.
    (tmp_path / "cifar-10-batches-py/data_batch_2").write_bytes(b"other")
    monkeypatch.setattr(cifar, "url", "http://127.0.0.1:9/none")
    with pytest.raises(ValueError, match=r"cifar10: not in .*, and cannot be downloaded"):
        dbn.datasets(config, tmp_path)


def test_folders_laid_out_as_imagenet(tmp_path):
    for part in ("train", "val"):
        for label, colour in (("cat", "red"), ("dog", "blue")):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40, 30), colour).save(tmp_path / part / label / f"{i}.jpg")
    config = load_config("gcp", "imagenet-resnet50", {"size": 32})
    training, test, classes, *_ = gcp.datasets(config, tmp_path)
    assert (len(training), len(test), len(classes)) == (6, 6, 2)
    x, y = training[0]
    assert x.shape == (3, 32, 32)
    assert y == 0
    (tmp_path / "val/dog").rename(tmp_path / "val/wolf")
    with pytest.raises(ValueError, match="different classes"):
        gcp.datasets(config, tmp_path)
    (tmp_path / "val").rename(tmp_path / "other")
    with pytest.raises(ValueError, match="expected the folders 'train' and 'val'"):
        gcp.datasets(config, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_and_ends_the_run(tmp_path, workers):
    for part, label in itertools.product(("train", "val"), ("cat", "dog")):
        (tmp_path / part / label).mkdir(parents=True)
        for i in range(8):
            noise = Image.effect_noise((40, 30), 50).convert("RGB")
            noise.save(tmp_path / part / label / f"{i}.jpg")
    file = tmp_path / "train/cat/5.jpg"
    file.write_bytes(file.read_bytes()[:-60])  # The header, which is looked at before, is whole.
    changes = {"data": "folder", "workers": workers, "batch_size": 4, "size": 32, "epochs": 1}
    arguments = ["gcp", "--data-root", tmp_path, "-o", tmp_path / "run", "--no-progress"]
    arguments += [f"--set={name}={value}" for name, value in changes.items()]
    if not workers:
        found = CliRunner().invoke(app, ["train", *map(str, arguments)])
        assert isinstance(found.exception, ValueError)
        assert re.fullmatch(r"unreadable data, item \d+: .*5\.jpg.*", str(found.exception))
        return
    # A process of its own: reading processes are forked, which JAX, loaded by others, warns of.
    code = "from matroot.cli import main; main()"
    command = [sys.executable, "-c", code, "train", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 1
    assert re.search(
        r"^matroot: unreadable data, item \d+: .*5\.jpg.*$", found.stderr, re.MULTILINE
    )
    assert "Traceback" not in found.stderr


def write_cub(root):
    """Three birds of two classes; numbers in an order that is not that of the classes."""
    folder = root / "CUB_200_2011"
    names = ["002.Crow/b_1.jpg", "001.Albatross/a_1.jpg", "001.Albatross/a_2.jpg"]
    for i, name in enumerate(names):
        write_picture(folder / "images" / name, 10 * i)
    lists = {
        "classes": "1 001.Albatross\n2 002.Crow\n",
        "images": "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)),
        "image_class_labels": "1 2\n2 1\n3 1\n",
        "train_test_split": "1 1\n2 0\n3 1\n",
    }
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def write_aircraft(root):
    """Three aircraft; a variant has blanks and slashes in its name."""
    folder = root / "fgvc-aircraft-2013b/data"
    for i in range(3):
        write_picture(folder / f"images/{i:07d}.jpg", 10 * i)
    (folder / "variants.txt").write_text("707-320\nF/A-18 Hornet\n")
    (folder / "images_variant_trainval.txt").write_text("0000000 F/A-18 Hornet\n0000002 707-320\n")
    (folder / "images_variant_test.txt").write_text("0000001 707-320\n")
    return folder


def write_annotations(file, names, labels):
    """As in the archive: a structure array (1, N), classes from 1 in uint8."""
    kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
    rows = np.zeros((1, len(names)), kinds)
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        rows[0, i] = (np.uint16(1), np.uint8(label), name)
    scipy.io.savemat(file, {"annotations": rows})


def write_cars(root):
    folder = root / "stanford_cars"
    for part, value in (("train", 0), ("train", 10), ("test", 20), ("test", 30)):
        write_picture(folder / f"cars_{part}" / f"{value:05d}.jpg", value)
    (folder / "devkit").mkdir()
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], object)
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    write_annotations(folder / "devkit/cars_train_annos.mat", ["00000.jpg", "00010.jpg"], [2, 1])
    names = ["00020.jpg", "00030.jpg"]
    write_annotations(folder / "cars_test_annos_withlabels.mat", names, [1, 2])
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(torchvision.datasets.FGVCAircraft, "_URL", "http://127.0.0.1:9/none")


FINE = {
    "cub": (write_cub, [(0, 1), (20, 0)], [(10, 0)]),
    "aircraft": (write_aircraft, [(0, 1), (20, 0)], [(10, 0)]),
    "cars": (write_cars, [(0, 1), (10, 0)], [(20, 0), (30, 1)]),
}


@pytest.mark.parametrize("name", FINE)
def test_the_official_split_of_fine_grained_pictures(name, tmp_path):
    write, in_training, in_test = FINE[name]
    write(tmp_path)
    training, test, classes, *_ = getattr(data, name)(tmp_path, as_read, as_read)
    assert len(classes) == 2
    assert (values(training), values(test)) == (in_training, in_test)


@pytest.mark.parametrize("name", FINE)
def test_a_configuration_reads_them(name, tmp_path):
    FINE[name][0](tmp_path)
    config = load_config("gcp", f"{name}-resnet50", {"size": 32})
    assert (config.data, config.reduced, config.pretrained) == (name, 64, True)
    torch.manual_seed(0)
    for part in gcp.datasets(config, tmp_path)[:2]:
        x, y = torch.utils.data.default_collate([part[0], part[0]])
        assert (x.shape, x.dtype, y.dtype) == ((2, 3, 32, 32), torch.float32, torch.int64)


def test_cub_is_found_by_its_own_folder(tmp_path):
    training, *_ = data.cub(write_cub(tmp_path), as_read, as_read)
    assert len(training) == 2


@pytest.mark.parametrize("name", FINE)
def test_a_missing_folder_says_what_was_expected(name, tmp_path):
    match = {"cub": r"\.txt", "aircraft": "fgvc-aircraft-2013b|aircraft", "cars": "stanford_cars"}
    one_line(getattr(data, name), tmp_path, as_read, as_read, match=match[name])


@pytest.mark.parametrize("missing", ["images", "image_class_labels", "train_test_split", "classes"])
def test_lists_of_cub_that_are_missing(missing, tmp_path):
    (write_cub(tmp_path) / f"{missing}.txt").unlink()
    one_line(data.cub, tmp_path, as_read, as_read, match=rf"{missing}\.txt.*expected")


@pytest.mark.parametrize(
    ("name", "old", "new", "match"),
    [
        ("images", "001.Albatross/a_1", "../001", r"\.\./001"),
        ("images", "001.Albatross/a_1", "/etc/a", r"/etc/a\.jpg"),
        ("images", "2 001.Albatross/a_1.jpg", "", "different pictures"),
        ("image_class_labels", "2 1", "2", r"image_class_labels\.txt: line '2'; expected 2 words"),
        ("image_class_labels", "2 1", "2 3", "class.* 3"),
        ("image_class_labels", "2 1", "2 0", "class.* 0"),
        ("train_test_split", "2 0", "2 1", "train_test_split"),
        ("train_test_split", "3 1", "3 2", r"train_test_split\.txt: expected"),
    ],
)
def test_lists_of_cub_that_do_not_fit(name, old, new, match, tmp_path):
    replace(write_cub(tmp_path) / f"{name}.txt", old, new)
    one_line(data.cub, tmp_path, as_read, as_read, match=match)


def test_folders_of_pictures_that_are_missing(tmp_path):
    for read, write in ((data.cub, write_cub), (data.aircraft, write_aircraft)):
        folder = write(tmp_path)
        (folder / "images").rename(folder / "pictures")
        one_line(read, tmp_path, as_read, as_read, match="images is not a folder")


@pytest.mark.parametrize("missing", ["variants.txt", "images_variant_test.txt"])
def test_lists_of_aircraft_that_are_missing(missing, tmp_path):
    (write_aircraft(tmp_path) / missing).unlink()
    one_line(data.aircraft, tmp_path, as_read, as_read, match=re.escape(missing))


def test_lists_of_aircraft_that_do_not_fit(tmp_path):
    file = write_aircraft(tmp_path) / "images_variant_test.txt"
    replace(file, "707-320", "747")
    one_line(data.aircraft, tmp_path, as_read, as_read, match="747")
    file.write_text("../0000001 707-320\n")
    one_line(data.aircraft, tmp_path, as_read, as_read, match=r"\.\./0000001")
    file.write_text("")
    one_line(data.aircraft, tmp_path, as_read, as_read, match="expected")


@pytest.mark.parametrize("missing", ["devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"])
def test_lists_of_cars_that_are_missing(missing, tmp_path):
    (write_cars(tmp_path) / missing).unlink()
    one_line(data.cars, tmp_path, as_read, as_read, match="expected.* stanford_cars|no such file")


def test_lists_of_cars_that_do_not_fit(tmp_path):
    file = write_cars(tmp_path) / "cars_test_annos_withlabels.mat"
    for label in (0, 3):
        write_annotations(file, ["00020.jpg", "00030.jpg"], [1, label])
        one_line(data.cars, tmp_path, as_read, as_read, match=f"class {label}.*expected 1 to 2")
    for name in ("/etc/a.jpg", "../cars_train/00000.jpg"):
        write_annotations(file, ["00020.jpg", name], [1, 2])
        one_line(data.cars, tmp_path, as_read, as_read, match=re.escape(name))
    for content in (b"", b"no matrices at all" * 20):
        file.write_bytes(content)
        one_line(data.cars, tmp_path, as_read, as_read, match="expected stanford_cars")


def test_a_picture_that_is_cut_off_is_named(tmp_path):
    file = write_cub(tmp_path) / "images/001.Albatross/a_1.jpg"
    file.write_bytes(file.read_bytes()[:-60])
    _, test, *_ = data.cub(tmp_path, as_read, as_read)
    one_line(test.__getitem__, 0, match=re.escape(str(file)))
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"a_1\.jpg"):
        test[0]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "LA", "1"])
def test_pictures_of_every_kind_have_three_channels(mode, tmp_path):
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    write_picture(file, 255, mode=mode)
    x = data.load_image(file)[0]
    assert (x.shape, x.dtype) == ((3, 30, 40), torch.uint8)
    assert x.float().mean() > 253


def test_a_picture_that_is_too_large_is_named(tmp_path):
    write_cub(tmp_path)
    file = tmp_path / "CUB_200_2011/images/001.Albatross/a_1.jpg"
    Image.new("1", (4097, 4096)).save(file, "png")
    _, test, *_ = data.cub(tmp_path, as_read, as_read)
    one_line(test.__getitem__, 0, match=f"{re.escape(str(file))}: .*4097 x 4096 pixels")


def test_numbers_are_those_of_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    to_numbers = data.to_numbers()
    found = to_numbers(tensor)
    torch.testing.assert_close(found, to_numbers(Image.fromarray(pixels)))
    mean, std = (torch.tensor(x)[:, None, None] for x in (data.MEAN, data.STD))
    torch.testing.assert_close(found.as_subclass(torch.Tensor), (tensor / 255 - mean) / std)
