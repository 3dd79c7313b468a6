"""Kernels of the CPU do not compute with what nobody has written (tests/helpers/untouched.py)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc fills what it gives"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flags are of x86's vector unit"),
    pytest.mark.skipif("FILM_KERNELS_SANITIZED" in os.environ, reason="the sanitizers have a malloc of their own"),
]


def test_nobody_computes_with_what_memory_held():
    environment = {**os.environ, "MALLOC_PERTURB_": "128"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.untouched"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout[-3000:] + done.stderr[-3000:]
