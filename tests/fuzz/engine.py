"""Look for bytes that break a target: python tests/fuzz/engine.py TARGET [libFuzzer's options].

It needs atheris. What breaks the target is written to a file that the last lines name.
"""

import sys
from pathlib import Path

import atheris

# Before the others, so that its code is not instrumented: it takes long, and is not what is tested.
import torch
from torch._weights_only_unpickler import Unpickler

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["matroot", "yaml", "PIL"]):
    from fuzz import targets

if __name__ == "__main__":
    torch.set_num_threads(1)
    Unpickler.load = atheris.instrument_func(Unpickler.load)
    target = targets.TARGETS[sys.argv.pop(1)]

    def once(given: bytes) -> None:
        """Atheris looks at the arguments of what it calls."""
        target(given)

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
