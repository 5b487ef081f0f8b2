"""The planted faults fit the sources; ``python tests/mutants.py`` plants them, which takes long."""

from pathlib import Path

import pytest

from mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_line_to_replace_and_a_test_to_catch_it(mutant):
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.right) == 1
    assert mutant.right != mutant.wrong
    files = [word for word in mutant.test.split() if word.startswith("tests/")]
    assert files
    assert all(Path(ROOT / file.partition("::")[0]).is_file() for file in files)
