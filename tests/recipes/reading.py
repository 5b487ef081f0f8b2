"""What tests of data sets on disk have in common."""

import pytest


def as_read(x):
    return x


def one_line(read, *arguments, match):
    with pytest.raises(ValueError, match=match) as raised:
        read(*arguments)
    assert "\n" not in str(raised.value)


def replace(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
