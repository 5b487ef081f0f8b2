"""``matroot predict`` and ``matroot evaluate``: a trained run in use."""

import csv
import json
import warnings

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pages
from matroot.cli import app
from matroot.recipes import embedded, trained
from matroot.recipes.catalogue import APPLICATIONS, EMBEDDED, application
from matroot.recipes.trained import Evaluation, Prediction
from matroot.recipes.training.configuration import load_config
from recipes.short import QUICK, quick
from recipes.test_clips import write_video

pytestmark = pytest.mark.usefixtures("few_pictures")


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def pictures(root, parts=("train", "val"), count=12):
    """Bright and dark stripes, which a small network tells apart at once."""
    for part in parts:
        for name, turned in (("lying", 0), ("standing", 90)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                lines = Image.new("L", (24, 24), 20 * i)
                for j in range(i % 3, 24, 4):
                    lines.paste(255 - 10 * i, (0, j, 24, j + 2))
                lines.rotate(turned).save(root / part / name / f"{i}.png")
    return root


OWN = {"data": "folder", "batch_size": 8, "size": 16, "learning_rate": 0.02, "epochs": 4}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run on pictures of one's own: its folder, theirs, and its result."""
    folder = tmp_path_factory.mktemp("own")
    root = pictures(folder / "data")
    return folder / "run", root, quick("gcp", folder, root=root, changes=OWN)


def test_evaluate_measures_what_training_did(own, tmp_path):
    folder, root, result = own
    found = run("evaluate", folder, "-o", tmp_path / "out", "--device", "cpu")
    assert found.exit_code == 0, found.output
    assert "class folders in train/ and val/" in found.output
    measured = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert measured["accuracy"] == pytest.approx(result["accuracy"], abs=1e-5)
    assert measured["loss"] == pytest.approx(result["test_loss"], abs=1e-4)
    assert (measured["count"], measured["epochs"], measured["data_root"]) == (24, 4, str(root))
    assert f"{measured['right']} of 24 right: accuracy {measured['accuracy']:.2%}" in found.output
    with Image.open(tmp_path / "out/confusion.png") as drawing:
        assert min(drawing.size) > 200


def test_evaluate_on_other_data(own, tmp_path):
    folder, root, _ = own
    # One of the classes alone is known, too: its number differs.
    other = tmp_path / "other"
    for part in ("train", "val"):
        (other / part).mkdir(parents=True)
        (other / part / "standing").symlink_to(root / part / "standing")
    found = run("evaluate", folder, "--data-root", other, "--all", "-o", tmp_path / "out")
    assert found.exit_code == 0, found.output
    measured = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [row["count"] for row in measured["classes"]] == [0, 24]
    whole = trained.load(folder, "cpu")
    split = trained.split_of(whole, None)
    expected = trained.evaluate(whole, split, everything=True).confusion
    assert measured["confusion"] == [[0, 0], expected[1].tolist()]
    assert len(split.test) == 24  # Unchanged.
    (other / "train/standing").rename(other / "train/flying")
    (other / "val/standing").rename(other / "val/flying")
    found = run("evaluate", folder, "--data-root", other)
    message = "classes that the run does not know: flying; it knows lying, standing"
    assert message in str(found.exception)


def test_predict_agrees_with_evaluate_and_writes_both_formats(own, tmp_path):
    folder, root, result = own
    right = 0
    for name in ("lying", "standing"):
        files = [root / "val" / name, "-o", tmp_path / "a.json", "--device", "cpu"]
        found = run("predict", folder, *files)
        assert found.exit_code == 0, found.output
        rows = json.loads((tmp_path / "a.json").read_text())
        assert [row["path"] for row in rows] == [str(f) for f in sorted(files[0].iterdir())]
        for row in rows:
            assert sum(row["probabilities"].values()) == pytest.approx(1)
            assert row["probability"] == row["probabilities"][row["class"]]
            assert row["probability"] == max(row["probabilities"].values())
        right += sum(row["class"] == name for row in rows)
    assert right == round(24 * result["accuracy"])
    run("predict", folder, *files[:1], "-o", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == [row["class"] for row in rows]
    found = [float(row["p(standing)"]) for row in table]
    assert found == pytest.approx([row["probabilities"]["standing"] for row in rows])


def test_predict_takes_the_pictures_in_folders_within_a_folder(own, tmp_path):
    folder, root, _ = own
    (tmp_path / "new").mkdir()
    for place in ("b.png", "deep/er/a.png", ".hidden/a.png", "deep/.a.png", "deep/a.txt"):
        (tmp_path / "new" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / place).write_bytes((root / "val/lying/3.png").read_bytes())
    found = run("predict", folder, tmp_path / "new", "-o", tmp_path / "a.json")
    assert found.exit_code == 0, found.output
    rows = json.loads((tmp_path / "a.json").read_text())
    wanted = [tmp_path / "new" / place for place in ("b.png", "deep/er/a.png")]
    assert [row["path"] for row in rows] == [str(path) for path in wanted]


def test_an_unreadable_file_is_named_and_left_out(own, tmp_path):
    folder, root, _ = own
    (tmp_path / "broken.png").write_bytes(b"none")
    good = root / "val/lying/3.png"
    found = run("predict", folder, tmp_path / "broken.png", good, "-o", tmp_path / "a.csv")
    assert found.exit_code == 1
    assert "left out: " in found.output
    assert "broken.png: not a readable image" in found.output
    assert (tmp_path / "a.csv").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{0}", "nowhere.png"], "nowhere.png: there is no such file or folder"),
        (["predict", "{0}", "{1}"], "expected a folder of pictures, got nothing"),
        (["predict", "{0}", "{2}", "-o", "a.txt"], "a.txt: expected a name that ends with .csv"),
        (["predict", "{0}", "{2}", "-o", "none/a.csv"], "none/a.csv: there is no folder none"),
        (["predict", "{0}", "{2}", "--style", "{2}"], "a run of gcp takes no --style"),
        (["predict", "{1}", "{2}"], "expected run.json and last.ckpt of a run of 'matroot train'"),
        (["predict", "{0}", "{2}", "--device", "abacus"], "--device 'abacus' is none that can"),
        (["evaluate", "{0}", "--data-root", "nowhere"], "nowhere is not a folder"),
        (["evaluate", "{0}", "--data-root", "{1}"], "expected class folders"),
    ],
)
def test_errors_are_one_line(arguments, message, own, tmp_path):
    folder, root, _ = own
    known = (folder, tmp_path, root / "val/lying/3.png")
    found = run(*(argument.format(*known) for argument in arguments))
    assert isinstance(found.exception, ValueError)
    assert message in str(found.exception)
    assert "\n" not in str(found.exception)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["a"]}, "expected what 'matroot train' has written"),
        ({"classes": [1, 2]}, "expected what 'matroot train' has written"),
        ({"items": [1, 2, 3], "classes": ["a", "b", "c"]}, "do not go together"),
        ({"items": "many"}, "expected what 'matroot train' has written"),
        ({"gradient": []}, "do not go together"),
        ({"method": "lu"}, "unknown method 'lu'"),
        ({"config": {}}, "data: Field required"),
        ({"application": "cnn"}, "expected a run of dbn or sovit or .*, got one of cnn"),
    ],
)
def test_a_broken_description_is_one_line(change, message, own, tmp_path):
    folder, _, _ = own
    (tmp_path / "last.ckpt").symlink_to(folder / "last.ckpt")
    known = json.loads((folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(known | change))
    with pytest.raises(ValueError, match=message) as raised:
        trained.load(tmp_path, "cpu")
    assert "\n" not in str(raised.value)


def test_a_run_of_before_classes_were_recorded(own, tmp_path):
    folder, _, _ = own
    (tmp_path / "last.ckpt").symlink_to(folder / "last.ckpt")
    known = json.loads((folder / "run.json").read_text())
    assert known.pop("classes") == ["lying", "standing"]
    (tmp_path / "run.json").write_text(json.dumps(known))
    assert trained.load(tmp_path, "cpu").classes == ("0", "1")


def test_data_with_other_classes_are_another_run(own):
    folder, root, _ = own
    for part in ("train", "val"):
        (root / part / "lying").rename(root / part / "flat")
    try:
        with pytest.raises(
            ValueError, match=r"other classes \(lying, standing\) than .*\(flat, st"
        ):
            quick("gcp", folder.parent, root=root, changes=OWN | {"epochs": 5})
    finally:
        for part in ("train", "val"):
            (root / part / "flat").rename(root / part / "lying")


def test_numbers_that_are_not_finite_are_no_class(own):
    folder, root, _ = own
    broken = trained.load(folder, "cpu")
    torch.nn.init.constant_(broken.network.model.fc.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="no class"):
        list(trained.predict(broken, [root / "val/lying/3.png"]))


def test_counts_of_an_evaluation():
    confusion = torch.tensor([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    found = Evaluation(("a", "b", "c"), confusion, 0.5)
    assert (found.count, found.right) == (8, 5)
    rows = found.per_class()
    assert [row["recall"] for row in rows] == [0.75, 0.5, None]
    assert [row["precision"] for row in rows] == [0.6, pytest.approx(2 / 3), None]
    assert [row["most_taken_for"] for row in rows] == ["b", "a", None]
    assert found.summary()["mean_recall"] == 0.625
    assert Prediction(None, [0.2, 0.5, 0.3]).best("abc", 2) == [("b", 0.5), ("c", 0.3)]


def test_many_classes_are_not_drawn(tmp_path):
    count = 41
    found = Evaluation(tuple(map(str, range(count))), torch.eye(count, dtype=torch.long), 0.0)
    assert not trained.draw_confusion(found, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path):
    found = Evaluation(("Ünïcode 猫", "dog"), torch.eye(2, dtype=torch.long), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained.draw_confusion(found, tmp_path / "a.png")


CLASSIFY = [name for name in APPLICATIONS if name != "style"]


def file_for(name, folder):
    if name == "video":
        write_video(folder / "a.avi")
        return folder / "a.avi"
    Image.effect_noise((50, 40), 50).convert("RGB").save(folder / "a.png")
    return folder / "a.png"


@pytest.mark.parametrize(
    ("name", "data"),
    [(name, data) for name in CLASSIFY for data in (EMBEDDED[name], "folder")]
    + [("dbn", "cifar10")],
)
def test_a_file_becomes_what_the_network_takes(name, data, tmp_path):
    config = load_config(name, "small", QUICK[name] | {"data": data})
    x = application(name).reader(config)(file_for(name, tmp_path))
    assert x.dtype == torch.float32
    network = application(name).build(config, 10, {}).eval()
    assert network(x[None]).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFY)
def test_every_application_classifies_files(name, tmp_path):
    """A network of one epoch on embedded data, which is asked about a file."""
    result = quick(name, tmp_path, changes={"epochs": 1})
    file = file_for(name, tmp_path)
    found = run("predict", tmp_path / "run", file, "-o", tmp_path / "a.json", "--top", "1")
    assert found.exit_code == 0, found.output
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert len(row["probabilities"]) == 10
    found = run("evaluate", tmp_path / "run")
    assert found.exit_code == 0, found.output
    measured = json.loads((tmp_path / "run/evaluation/evaluation.json").read_text())
    assert measured["accuracy"] == pytest.approx(result["accuracy"], abs=1e-5)
    other = run("evaluate", tmp_path / "run", "--data-root", tmp_path)
    assert "trained on the embedded data" in str(other.exception)


def test_a_file_is_read_as_the_embedded_pictures_are(tmp_path):
    """A texture and a digit, written as a picture, come back as they stand in the test set."""
    x, _ = embedded.textures("test", 32, 1)[0]
    grey = (128 + 30 * x).round().clamp(0, 255).to(torch.uint8)
    again = embedded.as_texture(grey, 32)
    assert (again - x).abs().max() < 0.05
    from sklearn.datasets import load_digits

    pixels = torch.tensor(load_digits().images[3])  # The first of the test set.
    large = (pixels * 255 / 16).round().to(torch.uint8).repeat_interleave(5, 0)
    picture = large.repeat_interleave(5, 1).expand(3, -1, -1)
    first, _ = embedded.digits("test", 32)[0]
    assert (embedded.as_digit(picture, 32) - first).abs().max() < 0.01
    with pytest.raises(ValueError, match="takes 32 x 32"):
        embedded.as_texture(grey[:, :20], 32)


def test_help_shows_commands():
    for command, words in (("predict", "classes.csv"), ("evaluate", "--data-root OTHER --all")):
        assert words in " ".join(run(command, "--help").output.split())


@pytest.mark.slow
def test_the_example_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = "own_data.md"
    tiles, in_python = pages.blocks(page)
    pages.run(page, tiles, {})
    _, example, _ = pages.blocks(page, "console")
    said = ""
    for line in example.splitlines():
        if line.startswith("$ matroot "):
            found = run(*line.removeprefix("$ matroot ").split())
            assert found.exit_code == 0, found.output
            said += found.output
    # All that does not depend on the last digits.
    for line in example.splitlines():
        if line.startswith("  ") or "written" in line or "most taken for" in line:
            assert line in said
    found = pages.run(page, in_python, {})
    assert (found["name"], found["probability"] > 0.5) == ("brick", True)
