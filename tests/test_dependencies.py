"""The package needs PyTorch and nothing else; Triton where it is there."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import film_kernels
from tests.helpers.subprocesses import run_python

WITHOUT_NUMPY = """
import sys, warnings
sys.modules["numpy"] = None
import torch  # which warns by itself
warnings.simplefilter("error")
import film_kernels
from film_kernels import __main__
x, w, factor = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(2, 4)
leaves = [t.requires_grad_() for t in (x, w, factor)]
for backend in ("cpu", "vendor", "reference"):
    film_kernels.conv_film(x, w, None, factor, backend=backend).sum().backward()
__main__.main([])
try:
    import numpy
except ImportError:
    print("done without numpy")
"""


def test_it_works_without_numpy_and_warns_of_nothing():
    done = run_python("-c", WITHOUT_NUMPY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done without numpy\n")


def test_nothing_else_is_imported():
    package = Path(film_kernels.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    assert {"torch", "triton"} <= found
    assert found - sys.stdlib_module_names == {"torch", "triton"}
