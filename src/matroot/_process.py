"""Which process imported matroot: kernels must know where they are first loaded in a fork of it."""

import os

PID = os.getpid()
