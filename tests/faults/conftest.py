import os
import subprocess
import sys

from recipes.conftest import few_pictures as few_pictures


def python(code, **environment):
    """What a fresh interpreter prints, and its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr
