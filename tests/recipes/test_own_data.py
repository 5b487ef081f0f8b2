"""Data of one's own: which layouts are found, how they are divided, what is said of them."""

import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from matroot.cli import app
from matroot.recipes import clips, style
from matroot.recipes.catalogue import APPLICATIONS, EMBEDDED, configurations
from matroot.recipes.data import Split
from matroot.recipes.layouts import PICTURES, VIDEOS, data_in, find, image_folders, listing
from matroot.recipes.training.configuration import load_config
from recipes.reading import as_read, one_line
from recipes.test_clips import write_video


def write(root, *names, size=(8, 6)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)


def classes_of(root, count=10, names=("cat", "dog")):
    write(root, *(f"{name}/{i}.png" for name in names for i in range(count)))
    return root


def names(items, root):
    return [(path.relative_to(root).as_posix(), label) for path, label in items]


@pytest.mark.parametrize("test", ["val", "valid", "validation", "test"])
def test_class_folders_in_two_parts(test, tmp_path):
    write(tmp_path, "train/cat/a.png", "train/dog/deep/b.JPG", f"{test}/cat/c.webp")
    write(tmp_path, f"{test}/dog/d.png", "train/.hidden/e.png", "train/cat/._a.png")
    write(tmp_path, "train/cat/.ipynb_checkpoints/a.png", "train/__MACOSX/cat/a.png")
    (tmp_path / "train/cat/notes.txt").write_text("")
    found = find(tmp_path, PICTURES)
    assert names(found.training, tmp_path) == [("train/cat/a.png", 0), ("train/dog/deep/b.JPG", 1)]
    assert names(found.test, tmp_path) == [(f"{test}/cat/c.webp", 0), (f"{test}/dog/d.png", 1)]
    assert found.classes == ("cat", "dog")
    assert found.layout == f"class folders in train/ and {test}/"


def test_class_folders_are_divided_by_names_alone(tmp_path):
    found = find(classes_of(tmp_path / "a", 40), PICTURES)
    for label in range(2):
        parts = [[n for n, y in names(p, tmp_path / "a") if y == label] for p in found[:2]]
        assert [len(part) for part in parts] == [32, 8]
        assert not set(parts[0]) & set(parts[1])
    held_out = names(found.test, tmp_path / "a")
    again = find(classes_of(tmp_path / "b", 40), PICTURES)
    assert names(again.test, tmp_path / "b") == held_out
    # A few more files move few from one part to the other.
    more = find(classes_of(tmp_path / "a", 45), PICTURES)
    assert len(set(held_out) - set(names(more.test, tmp_path / "a"))) <= 4
    # The share of few files is one at least.
    few = find(classes_of(tmp_path / "c", 2), PICTURES)
    assert (len(few.training), len(few.test)) == (2, 2)


def test_a_list_names_classes_and_parts(tmp_path):
    write(tmp_path, "x/1.png", "x/2.png", "3.png", "4, 5.png")
    file = tmp_path / "all.csv"
    text = 'class,path, part\nb,x/1.png,train\na,x/2.png,train\n b ,3.png,val\na,"4, 5.png",test\n'
    file.write_text(text, encoding="utf-8-sig")
    found = find(tmp_path, PICTURES)
    assert names(found.training, tmp_path) == [("x/1.png", 1), ("x/2.png", 0)]
    assert names(found.test, tmp_path) == [("3.png", 1), ("4, 5.png", 0)]
    assert found.classes == ("a", "b")
    # Without parts a fifth of each class, at least one.
    file.write_text('path,class\nx/1.png,b\nx/2.png,a\n3.png,b\n"4, 5.png",a\n')
    found = find(tmp_path, PICTURES)
    assert (len(found.training), len(found.test)) == (2, 2)


HEAD = "path,class,part\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"all\.csv: expected the columns path, class .* got no line"),
        ("file;label\n", "expected the columns .* got file;label; the first line names them"),
        ("path,class\n", "got the first line alone"),
        (HEAD + "1.png,a\n", "line 2: no part"),
        (HEAD + "1.png,,test\n", "line 2: no class"),
        (HEAD + "1.png,a,train\n2.png,b,dev\n", "line 3: expected part train or test, got 'dev'"),
        (HEAD + "1.png,a,train\n2.png,a,test\n", "at least two classes, got a"),
        (HEAD + "1.png,a,train\n2.png,b,train\n", "rows of both parts"),
        (HEAD + "1.png,a,train\n2.png,b,test\n", "pictures of each class for training, none of b"),
        (HEAD + "1.png,a,train\n1.png,b,test\n", r"1\.png named twice"),
        (HEAD + "1.png,a,train\n3.png,b,test\n", r"3\.png: named in .*, but missing; paths are"),
        (HEAD + f"1.png,a,train\n{'x' * 300},b,test\n", "x: named in .*, but missing"),
        (HEAD + '1.png,a,train\n"2\n.png",b,test\n', r"2 \.png: named in .*, but missing"),
        (HEAD + "../1.png,a,train\n2.png,b,test\n", "leads out"),
        (HEAD + "/1.png,a,train\n2.png,b,test\n", "leads out"),
        ("path,class\n1.png,a\n2.png,b\n", "class 'a' has one file; expected two at least"),
        (HEAD + '"1.png,a,train\n', "expected a list as text in UTF-8"),
        (b"path,class\n\xff\xfe,a\n", "expected a list as text in UTF-8"),
    ],
)
def test_lists_that_do_not_fit(text, match, tmp_path):
    write(tmp_path, "1.png", "2.png")
    (tmp_path / "all.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    one_line(find, tmp_path, PICTURES, match=match)


def test_layouts_that_do_not_fit(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    one_line(find, root, PICTURES, match="or a list .*; got nothing")
    write(root, "1.png", "2.jpg", "cat/1.png")
    one_line(find, root, PICTURES, match=r"got 1 folder \(cat\) and 2 files \(\.png, \.jpg\)")
    (root / "dog").mkdir()
    (root / "dog/a.heic").write_text("")
    expected = r"dog: no pictures in it, but 1 file \(\.heic\); save them as JPEG or PNG"
    one_line(find, root, PICTURES, match=expected)
    one_line(find, root, VIDEOS, match="cat: no videos in it, .* only AVI is read: ffmpeg -i NAME")
    classes_of(root / "train")
    one_line(find, root, PICTURES, match="'train' and 'val' .* or take .*train, of which a fifth")
    classes_of(root / "val", names=("cat", "wolf"))
    one_line(find, root, PICTURES, match="different classes; 'train' lacks wolf")
    classes_of(root / "train", names=("wolf",))
    one_line(find, root, PICTURES, match="different classes; 'val' lacks dog")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("")
    one_line(find, tmp_path, PICTURES, match=r"expected one list, got a\.csv, b\.csv")


@pytest.mark.parametrize(
    ("application", "folder", "data"),
    [
        ("gcp", "CUB_200_2011", "cub"),
        ("gcp", "fgvc-aircraft-2013b", "aircraft"),
        ("gcp", "stanford_cars", "cars"),
        ("dbn", "cifar-10-batches-py", "cifar10"),
        ("video", "ucfTrainTestlist", "ucf101"),
        ("video", "testTrainMulti_7030_splits", "hmdb51"),
        ("sovit", "CUB_200_2011", "folder"),
        ("style", "trainA", "folder"),
    ],
)
def test_known_data_sets_are_recognised(application, folder, data, tmp_path):
    (tmp_path / folder).mkdir()
    assert data_in(application, tmp_path) == data
    load_config(application, "small", {"data": data})


def test_embedded_data_are_those_of_the_small_configurations():
    assert set(EMBEDDED) == set(APPLICATIONS)
    for name in APPLICATIONS:
        used = {load_config(name, config).data == EMBEDDED[name] for config in configurations(name)}
        assert load_config(name, "small").data == EMBEDDED[name]
        assert used == {True, False}


def test_the_listing(tmp_path):
    classes_of(tmp_path, 10)
    write(tmp_path, "cat/large.png", size=(300, 200))
    said = listing(image_folders(tmp_path, as_read, as_read), tmp_path)
    assert said[0] == f"data from {tmp_path}: class folders, a fifth of each kept for test"
    assert said[1:3] == [
        "  17 files for training, 4 for test, 2 classes",
        "  8×6 to 300×200 pixels",
    ]
    assert re.fullmatch(r"  cat +9 training +2 test", said[3])
    assert re.fullmatch(r"  dog +8 training +2 test", said[4])
    (tmp_path / "dog/0.png").write_bytes(b"none")
    one_line(
        listing,
        image_folders(tmp_path, as_read, as_read),
        tmp_path,
        match=r"0\.png: not a readable",
    )


def test_the_listing_of_many_classes_and_files(tmp_path):
    classes_of(tmp_path, 12, [f"{i:02d}" for i in range(25)])
    said = listing(image_folders(tmp_path, as_read, as_read), tmp_path)
    assert said[2] == "  8×6 pixels (150 looked at)"
    assert len(said) == 24
    assert said[-1] == "  and 5 more classes of 10 to 10 for training"
    named = listing(Split([0] * 3, [0], ("a", "b")), tmp_path)
    assert named == [f"data from {tmp_path}", "  3 items for training, 1 for test, 2 classes"]


def test_videos_of_ones_own(tmp_path):
    for name in ("cat/1.avi", "cat/2.avi", "dog/1.avi", "dog/2.AVI"):
        write_video(tmp_path / name, count=4)
    split = clips.video_folders(tmp_path, 2, as_read, as_read)
    assert split.training[0][0].shape == (3, 2, 32, 48)
    assert listing(split, tmp_path)[2] == "  48×32 pixels"


def test_pictures_and_styles_are_divided(tmp_path):
    for folder, count in (("photographs", 10), ("styles", 3)):
        write(tmp_path, *(f"{folder}/{i}.png" for i in range(count)), size=(60, 50))
    config = load_config("style", "small", {"data": "folder", "size": 16, "test_size": 32})
    training, test, classes, layout = style.datasets(config, tmp_path)
    assert (len(training.photographs), len(training.styles)) == (8, 2)
    assert (len(test), classes) == (2, ())
    assert layout.endswith("a fifth of each kept for test; 8 × 2 for training, 2 × 1 for test")
    (tmp_path / "styles").rename(tmp_path / "other")
    one_line(style.datasets, config, tmp_path, match=r"photographs and styles.*got 2 folders \(oth")


def test_train_says_what_it_has_found(tmp_path):
    classes_of(tmp_path / "data", 10)
    arguments = ["train", "gcp", "--data-root", tmp_path / "data", "-o", tmp_path / "run"]
    found = CliRunner().invoke(app, [*map(str, arguments), "--no-progress"])
    assert "4 for test, 2 classes" in found.output
    assert "read as 32×32 pixels" in found.output
    expected = "16 items for training make no batch of 64; --set batch_size=4 makes some"
    assert str(found.exception) == expected
    assert not (tmp_path / "run").exists()
