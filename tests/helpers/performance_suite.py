"""The performance suite, started by a test: a Python process in the checkout, and a row that takes no time."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from bench import timing
from bench.shapes import CONV_CASES, NORM_CASES, Row

from .subprocesses import ROOT

CPU = torch.device("cpu")
BUDGET = 150  # seconds, of which a machine with nothing else to do needs half
TINY_ROW, TINY_NORM = (Row(cases[0], tiny=True) for cases in (CONV_CASES, NORM_CASES))
SHORT = timing.Rounds(2, 3)


def start(*words, **variables):
    """A Python process in the checkout, on one thread: others may be at work beside it. It is not told of Triton's
    interpreter, which is nobody to be timed, nor that these tests may be shared out, where pytest-benchmark is off."""
    unlike = ("TRITON_INTERPRET", "PYTEST_XDIST", "PYTEST_ADDOPTS")
    here = {name: value for name, value in os.environ.items() if not name.startswith(unlike)}
    environment = {**here, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, timeout=4 * BUDGET
    )
