"""Data sets of videos: official splits, the frames that are read, what is broken or missing."""

import re

import av
import numpy as np
import pytest
import torch

from matroot.recipes import clips, video
from matroot.recipes.training.configuration import load_config
from recipes.reading import as_read, one_line, replace


class Forward:
    """A file without seeking: the header cannot give the true number of frames."""

    def __init__(self, file):
        self.file = file

    def write(self, part):
        return self.file.write(part)


def write_video(path, count=20, skipped=0, seekable=True):
    """Frame i has brightness 10·i + 20; at the end packets that show nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        target = file if seekable else Forward(file)
        with av.open(target, "w", format="avi") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for i in range(count):
                pixels = np.full((32, 48, 3), 10 * i + 20, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            for i in range(skipped):
                # A picture "not coded", as Xvid writes after two pictures in one packet.
                packet = av.Packet(b"\x00\x00\x01\xb6\x50\x00\x20")
                packet.stream, packet.pts, packet.dts = stream, count + i, count + i
                container.mux(packet)


def shown(clip):
    """Numbers of the frames of a clip (3, frames, H, W)."""
    assert clip.shape[0] == 3
    assert clip.shape[2:] == (32, 48)
    assert clip.dtype == torch.uint8
    return ((clip.float().mean((0, 2, 3)) - 20) / 10).round().int().tolist()


def write_hmdb51(root, videos="hmdb51_org"):
    lists = {"wave": "a.avi 1 \nb.avi 2 \nc.avi 0 \n", "hit": "a.avi 2 \n#b&c.avi 1 \n\n"}
    for name, text in lists.items():
        for line in text.split("\n"):
            if line:
                write_video(root / videos / name / line.split()[0])
        for split in (1, 2):
            file = root / "testTrainMulti_7030_splits" / f"{name}_test_split{split}.txt"
            file.parent.mkdir(exist_ok=True)
            # The second split exchanges training and test.
            file.write_text(text if split == 1 else text.translate({49: 50, 50: 49}))


def write_ucf101(root):
    lists = {
        "classInd.txt": "1 Archery\r\n2 Surfing\r\n",
        "trainlist01.txt": "Archery/v_1.avi 1\nSurfing/v_1.avi 2\n",
        "testlist01.txt": "Surfing/v_2.avi\n",
        "trainlist02.txt": "Surfing/v_2.avi 2\n",
        "testlist02.txt": "Surfing/v_1.avi\nArchery/v_1.avi\n",
    }
    for name in ("Archery/v_1.avi", "Surfing/v_1.avi", "Surfing/v_2.avi"):
        write_video(root / "UCF-101" / name)
    (root / "ucfTrainTestlist").mkdir()
    for name, text in lists.items():
        (root / "ucfTrainTestlist" / name).write_bytes(text.encode())


def read_videos(name, root, split=1, frames=4):
    return getattr(clips, name)(root, frames, split, as_read, as_read)


WRITE = {"hmdb51": write_hmdb51, "ucf101": write_ucf101}


@pytest.mark.parametrize("name", WRITE)
def test_official_splits_of_videos(name, tmp_path):
    WRITE[name](tmp_path)
    expected = {
        "hmdb51": ([("hit/#b&c.avi", 0), ("wave/a.avi", 1)], [("hit/a.avi", 0), ("wave/b.avi", 1)]),
        "ucf101": ([("Archery/v_1.avi", 0), ("Surfing/v_1.avi", 1)], [("Surfing/v_2.avi", 1)]),
    }[name]
    opened = []

    def watch(path, *arguments, **options):
        opened.append("/".join(str(path).split("/")[-2:]))
        return av_open(path, *arguments, **options)

    av_open = av.open
    for split, parts in ((1, expected), (2, expected[::-1])):
        *sets, classes, _ = read_videos(name, tmp_path, split)
        assert len(classes) == 2
        for dataset, items in zip(sets, parts, strict=True):
            found = []
            for i in range(len(dataset)):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(av, "open", watch)
                    _, label = dataset[i]
                found.append((opened[-1], label))
            assert sorted(found) == sorted(items)


def test_hmdb51_with_its_classes_beside_the_lists(tmp_path):
    write_hmdb51(tmp_path, videos=".")
    training, test, classes, _ = read_videos("hmdb51", tmp_path)
    assert (len(training), len(test), len(classes)) == (2, 2, 2)
    assert shown(training[0][0])


@pytest.mark.parametrize("name", WRITE)
def test_a_frame_of_each_segment(name, tmp_path):
    WRITE[name](tmp_path)
    training, test, *_ = read_videos(name, tmp_path)
    assert shown(test[0][0]) == shown(test[0][0]) == [2, 7, 12, 17]
    torch.manual_seed(0)
    drawn = [shown(training[0][0]) for _ in range(30)]
    segments = [[place // 5 for place in places] for places in drawn]
    assert segments == [[0, 1, 2, 3]] * 30
    # Every frame is drawn at some time, as the generator decides.
    assert {place for places in drawn for place in places} == set(range(20))
    torch.manual_seed(0)
    assert shown(training[0][0]) == drawn[0]


@pytest.mark.parametrize(
    ("count", "skipped", "seekable", "expected"),
    [
        (3, 0, True, [0, 0, 0, 1, 1, 1, 2, 2]),
        (1, 0, True, [0] * 8),
        (20, 0, False, [1, 3, 6, 8, 11, 13, 16, 18]),
    ],
)
def test_videos_that_are_short_or_of_unknown_length(count, skipped, seekable, expected, tmp_path):
    write_ucf101(tmp_path)
    write_video(tmp_path / "UCF-101/Surfing/v_2.avi", count, skipped, seekable)
    _, test, *_ = read_videos("ucf101", tmp_path, frames=8)
    found = shown(test[0][0])
    # Where a segment has no whole frame, it is the one before or after.
    assert sorted(found) == found
    assert all(abs(a - b) <= (count < 8) for a, b in zip(found, expected, strict=True))


def test_empty_packets_are_not_frames(tmp_path):
    write_ucf101(tmp_path)
    write_video(tmp_path / "UCF-101/Archery/v_1.avi", skipped=4)
    training, *_ = read_videos("ucf101", tmp_path)
    torch.manual_seed(0)
    for _ in range(20):
        assert max(shown(training[0][0])) < 20


@pytest.mark.parametrize("content", ["empty", "text", "no frames", "playlist"])
def test_a_broken_video_is_named(content, tmp_path):
    write_ucf101(tmp_path)
    file = tmp_path / "UCF-101/Surfing/v_2.avi"
    if content == "no frames":
        write_video(file, 0)
    else:
        texts = {"empty": "", "text": "no video", "playlist": "ffconcat version 1.0\nfile v_1.avi"}
        file.write_text(texts[content])
    _, test, *_ = read_videos("ucf101", tmp_path)
    one_line(test.__getitem__, 0, match=re.escape(str(file)))


def test_a_video_that_is_cut_off_is_named(tmp_path):
    write_ucf101(tmp_path)
    file = tmp_path / "UCF-101/Surfing/v_2.avi"
    file.write_bytes(file.read_bytes()[:-2000])
    _, test, *_ = read_videos("ucf101", tmp_path, frames=20)
    one_line(test.__getitem__, 0, match=re.escape(str(file)))


def test_only_chosen_frames_are_converted(tmp_path, monkeypatch):
    """Of a long video only the chosen frames are converted, and perhaps the last."""
    write_ucf101(tmp_path)
    write_video(tmp_path / "UCF-101/Surfing/v_2.avi", 23)
    _, test, *_ = read_videos("ucf101", tmp_path)
    converted = []
    convert = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda x: converted.append(x.shape) or convert(x))
    assert shown(test[0][0]) == [2, 8, 14, 20]
    assert 4 <= len(converted) <= 5
    assert set(converted) == {(32, 48, 3)}


def test_a_video_with_too_many_pixels_is_named(tmp_path, monkeypatch):
    write_ucf101(tmp_path)
    _, test, *_ = read_videos("ucf101", tmp_path)
    monkeypatch.setattr(clips, "MAX_PIXELS", 48 * 32)
    assert shown(test[0][0])
    monkeypatch.setattr(clips, "MAX_PIXELS", 48 * 32 - 1)
    one_line(test.__getitem__, 0, match=r"v_2\.avi: .*48 x 32 pixels")


def test_metadata_of_a_video_may_have_any_encoding(tmp_path):
    write_ucf101(tmp_path)
    file = tmp_path / "UCF-101/Surfing/v_2.avi"
    with av.open(str(file), "w", format="avi") as container:
        container.metadata["title"] = "XXXX"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20, np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    whole = file.read_bytes()
    assert b"XXXX" in whole
    file.write_bytes(whole.replace(b"XXXX", b"\xe9\xff\xfe\xe9"))
    _, test, *_ = read_videos("ucf101", tmp_path)
    assert shown(test[0][0]) == [0] * 4


@pytest.mark.parametrize("name", WRITE)
def test_clips_for_the_network(name, tmp_path):
    WRITE[name](tmp_path)
    changes = {"size": 16, "frames": 5, "pretrained": False}
    config = load_config("video", f"{name}-resnet50", changes)
    training, test, classes, *_ = video.datasets(config, tmp_path)
    assert len(classes) == 2
    for part in (training, test):
        x, y = part[0]
        assert (x.shape, x.dtype) == ((3, 5, 16, 16), torch.float32)
        assert y in (0, 1)
    # One after the other: brightness grows.
    assert (test[0][0].mean((0, 2, 3)).diff() > 0).all()


@pytest.mark.parametrize("name", ["../wave/a.avi", "/etc/a.avi", "../../a.avi"])
def test_names_that_lead_out_of_the_videos(name, tmp_path):
    (tmp_path / "h").mkdir()
    (tmp_path / "u").mkdir()
    write_hmdb51(tmp_path / "h")
    replace(tmp_path / "h/testTrainMulti_7030_splits/wave_test_split1.txt", "a.avi 1", f"{name} 1")
    one_line(read_videos, "hmdb51", tmp_path / "h", match=re.escape(name))
    write_ucf101(tmp_path / "u")
    replace(tmp_path / "u/ucfTrainTestlist/testlist01.txt", "Surfing/v_2.avi", f"Surfing/../{name}")
    one_line(read_videos, "ucf101", tmp_path / "u", match=re.escape(f"Surfing/../{name}"))


def test_a_class_of_hmdb51_without_its_list(tmp_path):
    write_hmdb51(tmp_path)
    (tmp_path / "testTrainMulti_7030_splits/wave_test_split1.txt").unlink()
    one_line(read_videos, "hmdb51", tmp_path, match=r"wave_test_split1\.txt.*expected")


@pytest.mark.parametrize("name", WRITE)
def test_there_are_three_splits(name, tmp_path):
    WRITE[name](tmp_path)
    for split in (0, 4):
        one_line(read_videos, name, tmp_path, split, match=r"1, 2 or 3")
    one_line(read_videos, name, tmp_path, 3, match="expected")
    one_line(read_videos, name, tmp_path / "nowhere", match="expected")


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "match"),
    [
        ("hmdb51", "testTrainMulti_7030_splits/wave_test_split1.txt", "avi 1", "avi 3", "expected"),
        ("hmdb51", "testTrainMulti_7030_splits/wave_test_split1.txt", "avi 1", "avi", "expected"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", "Archery", "Boxing", "Boxing"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", "v_1.avi 1", "v_1.avi 2", "v_1.avi 2"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", "v_1.avi 1", "v_1.avi", "expected 2 words"),
        ("ucf101", "ucfTrainTestlist/classInd.txt", "1 Archery", "Archery", "expected 2 words"),
        ("ucf101", "ucfTrainTestlist/testlist01.txt", "Surfing/v_2.avi", "", "test"),
        ("ucf101", "ucfTrainTestlist/testlist01.txt", "v_2", "v_1", "for training and for test"),
    ],
)
def test_lists_of_videos_that_do_not_fit(name, file, old, new, match, tmp_path):
    WRITE[name](tmp_path)
    replace(tmp_path / file, old, new)
    one_line(read_videos, name, tmp_path, match=match)
