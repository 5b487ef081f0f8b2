"""Videos: HMDB51 and UCF101 with their official splits, and folders of one's own; few frames each.

torchvision's classes of these names rely on its reader of videos, which was removed; here PyAV
reads them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import torch
from av.container import InputContainer
from torch import Tensor

from matroot.recipes.data import Items, Split, Transform, inside, lines
from matroot.recipes.images import MAX_PIXELS
from matroot.recipes.layouts import VIDEOS, find


class Clips(Items):
    """Frames of videos, (3, frames, H, W) after the transform, and classes.

    A video is cut into as many segments of equal length as there are frames (Temporal Segment
    Networks): training takes a frame of each at random, test the middle one.

    Args:
        items: paths and classes.
        frames: number of frames.
        transform: of all frames of a clip together, uint8 (frames, 3, H, W).
        training: whether frames are drawn at random.
    """

    def __init__(
        self,
        items: Sequence[tuple[Path, int]],
        frames: int,
        transform: Transform,
        training: bool,
    ) -> None:
        super().__init__(items, transform)
        self.frames = frames
        self.training = training

    def read(self, path: Path) -> Tensor:
        """See ``Items``."""
        count = count_frames(path)
        start = torch.arange(self.frames + 1) * count / self.frames
        where = torch.rand(self.frames) if self.training else torch.tensor(0.5)
        chosen = (start[:-1] + where * start.diff()).long().clamp(max=count - 1)
        clip: Tensor = self.transform(read_frames(path, chosen.tolist()))
        return clip.transpose(0, 1)

    def size(self, path: Path) -> tuple[int, int]:
        """See ``Items``."""
        with _opened(path) as video:
            stream = video.streams.video[0]
            return stream.width, stream.height


def count_frames(path: Path) -> int:
    """How many frames a video has, by its packets: nothing is decoded.

    Raises:
        ValueError: not a readable video, or an empty one.
    """
    with _opened(path) as video:
        count = sum(packet.size > 0 for packet in video.demux(video=0))
    if count == 0:
        raise ValueError(f"{path}: not a readable video (no frames)")
    return count


def read_frames(path: Path, chosen: Sequence[int]) -> Tensor:
    """These frames of a video, ascending, uint8 (frames, 3, H, W).

    Frames are decoded one after the other up to the last one wanted; only those wanted are kept.
    Where there are fewer, the last one replaces those missing: Xvid writes packets that show
    nothing, so that a video has fewer frames than packets.

    Raises:
        ValueError: not a readable video.
    """
    found: dict[int, Tensor] = {}
    last = None
    with _opened(path) as video:
        size = video.streams.video[0]
        width, height = size.width, size.height

        def pixels(frame: av.VideoFrame) -> Tensor:
            # Frames of a video may differ in size; those of a clip may not.
            array = frame.to_ndarray(format="rgb24", width=width, height=height)
            return torch.from_numpy(array).permute(2, 0, 1)

        for i, last in enumerate(itertools.islice(video.decode(video=0), chosen[-1] + 1)):
            if i in chosen:
                found[i] = pixels(last)
        if last is None:
            raise ValueError("no frames")
        end = pixels(last)
    return torch.stack([found.get(i, end) for i in chosen])


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """An open video; errors here and while it is used become a ValueError that names it.

    With the format given, libav takes neither the file for a playlist of other files nor an
    absolute path for an address.
    """
    try:
        with av.open(str(path.absolute()), format="avi", metadata_errors="ignore") as video:
            width, height = video.streams.video[0].width, video.streams.video[0].height
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels; at most 4096 x 4096 are supported")
            yield video
    except Exception as error:  # PyAV raises many kinds, such as AttributeError for a codec.
        # libav names the file once more.
        reason = " ".join(str(error).replace(f": {str(path.absolute())!r}", "").split())
        raise ValueError(f"{path}: not a readable video ({reason})") from None


def hmdb51(root: Path, frames: int, split: int, training: Transform, test: Transform) -> Split:
    """HMDB51 as it is unpacked.

    ``hmdb51_org/CLASS/NAME.avi`` (or ``CLASS/NAME.avi``) and
    ``testTrainMulti_7030_splits/CLASS_test_split1.txt``.

    Args:
        root: the folder of both.
        frames: of each video.
        split: 1, 2 or 3.
        training: applied to training clips, uint8 (frames, 3, H, W).
        test: applied to test clips.

    Raises:
        ValueError: lists or folders are missing, or do not fit.
    """
    _check_split(split)
    videos = root / "hmdb51_org" if (root / "hmdb51_org").is_dir() else root
    lists, ending = root / "testTrainMulti_7030_splits", f"_test_split{split}.txt"
    # Of all splits, so that a class without a list in this split is an error.
    found = {file.name.rpartition("_test_split")[0] for file in lists.glob("*_test_split?.txt")}
    if not found:
        raise ValueError(f"{root}: expected {lists.name} with CLASS{ending}")
    items: dict[str, list[tuple[Path, int]]] = {"1": [], "2": [], "0": []}
    for label, name in enumerate(sorted(found)):
        file = lists / f"{name}{ending}"
        for video, part in lines(file, 2):
            if part not in items:
                raise ValueError(f"{file}: expected lines 'NAME 0', 1 or 2, got '{video} {part}'")
            items[part].append((inside(videos / name, video), label))
    parts, layout = (items["1"], items["2"]), f"HMDB51, split {split}"
    return _split(root, *parts, sorted(found), layout, frames, training, test)


def ucf101(root: Path, frames: int, split: int, training: Transform, test: Transform) -> Split:
    """UCF101 as it is unpacked.

    ``UCF-101/CLASS/v_….avi`` and ``ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt``.
    Arguments and errors are those of ``hmdb51``.
    """
    _check_split(split)
    lists, videos = root / "ucfTrainTestlist", root / "UCF-101"
    numbers = {name: number for number, name in lines(lists / "classInd.txt", 2)}
    order = {name: i for i, name in enumerate(numbers)}
    parts = []
    for part, count in (("train", 2), ("test", 1)):
        file = lists / f"{part}list0{split}.txt"
        items = []
        for name, *label in lines(file, count):
            folder = name.partition("/")[0]
            # Lists for training also give the class.
            if folder not in order or label not in ([], [numbers[folder]]):
                line = " ".join([name, *label])
                raise ValueError(f"{file}: {line!r} does not fit the classes of classInd.txt")
            items.append((inside(videos, name), order[folder]))
        parts.append(items)
    if both := set(parts[0]) & set(parts[1]):
        raise ValueError(f"{lists}: {min(both)[0]} is listed for training and for test")
    layout = f"UCF101, split {split}"
    return _split(root, parts[0], parts[1], tuple(order), layout, frames, training, test)


def video_folders(root: Path, frames: int, training: Transform, test: Transform) -> Split:
    """Videos of one's own, see ``layouts.find``; arguments as of ``hmdb51``."""
    found = find(root, VIDEOS)
    parts = (
        Clips(found.training, frames, training, training=True),
        Clips(found.test, frames, test, training=False),
    )
    return Split(*parts, found.classes, found.layout)


def _check_split(split: int) -> None:
    if split not in (1, 2, 3):
        raise ValueError(f"split must be 1, 2 or 3, got {split}")


def _split(
    root: Path,
    train: Sequence[tuple[Path, int]],
    held_out: Sequence[tuple[Path, int]],
    classes: Sequence[str],
    layout: str,
    frames: int,
    training: Transform,
    test: Transform,
) -> Split:
    for part, items in (("training", train), ("test", held_out)):
        if not items:
            raise ValueError(f"{root}: the lists name no {part} videos")
        missing = next((path for path, _ in items if not os.path.isfile(path)), None)
        if missing is not None:
            raise ValueError(f"{missing}: named in a list of {root}, but missing")
    return Split(
        Clips(train, frames, training, training=True),
        Clips(held_out, frames, test, training=False),
        classes,
        layout,
    )
