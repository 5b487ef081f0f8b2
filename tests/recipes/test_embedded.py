"""The embedded data sets."""

import pytest
import torch

from matroot.recipes import embedded


@pytest.mark.parametrize("data", ["digits", "textures"])
def test_train_and_test_differ(data):
    train_x, test_x = (
        getattr(embedded, data)(part).tensors[0].flatten(1) for part in ("train", "test")
    )
    # Except for a few patches of one colour: the retina has a black rim.
    train_x, test_x = (x[x.std(1) > 0] for x in (train_x, test_x))
    assert min(len(train_x), len(test_x)) > 440
    assert torch.cdist(train_x, test_x).min() > 0


def test_motions_show_and_use_different_photographs():
    assert not set(embedded.SCENES["train"]) & set(embedded.SCENES["test"])
    for part in ("train", "test"):
        x, y = embedded.motions(part, count=7).tensors
        assert y.bincount().tolist() == [7] * 10
        assert x[:, :, 4].mean(1).flatten(1).std(1).min() > 0.02


def test_motions_move_as_they_say():
    x, y = embedded.motions("test", count=4).tensors
    assert x.shape == (40, 3, 8, 32, 32)
    still = x[y == 0]
    assert torch.equal(still[:, :, 0], still[:, :, -1])
    # A camera that pans left sees what lies to the left: the picture moves right.
    left = x[y == embedded.MOTIONS.index("pan left")]
    shifts = []
    for clip in left:
        first, last = clip[:, 3], clip[:, 4]
        errors = {s: (first.roll(s, 2) - last)[:, :, 4:-4].square().mean() for s in range(-3, 4)}
        shifts.append(min(errors, key=errors.get))
    assert sum(s > 0 for s in shifts) >= 3
    assert all(s >= 0 for s in shifts)


def test_photographs_of_train_and_test_differ():
    train, test = (embedded.photos(part) for part in embedded.PARTS)
    assert not {t.shape for t in train[0]} & {t.shape for t in test[0]}
    for upper, lower in zip(train[1], test[1], strict=True):
        assert upper.shape[2] == lower.shape[2]
        whole = torch.cat([upper, lower], 1)
        assert whole.shape[1] in (512, 872)
