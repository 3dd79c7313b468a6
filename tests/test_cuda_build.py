"""The CUDA library as nvcc builds it: every kernel for every generation of GPUs, and loaded without a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import film_kernels
from tests.helpers import emulation
from tests.helpers.cases import EMULATED

pytestmark = pytest.mark.skipif(not EMULATED, reason="the sources are not here, only the tests")

ARCHITECTURES = ("90", *(pytest.param(other, marks=pytest.mark.slow) for other in ("80", "86", "89", "100", "120")))
CONVOLUTIONS = ("forward", "grad_input", "grad_weight", "recompute")


def report():
    """The module csrc/cuda/report.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("cuda_report", emulation.KERNELS / "report.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_fits_in_registers_and_uses_tensor_cores_where_it_should(architecture):
    """Each takes minutes of a core. The newest cards' assembler needs the most registers."""
    emulation.cuda_tool("nvcc")
    rows = report().rows([architecture])
    assert [row for row in rows if row.is_bad] == []
    assert {row.architecture for row in rows} == {architecture}
    assert {row.file for row in rows} == {path.stem for path in emulation.KERNELS.glob("*.cu")}
    for row in rows:
        matrix = row.file in CONVOLUTIONS
        packets = row.file.startswith("norm_") and re.search(r"<\w+, 4\b", row.kernel) is not None  # asked for ahead
        assert ("matrix" in row.instructions) == matrix, row
        assert ("cp.async" in row.instructions) == (matrix or packets), row
        transposed_32_bits = row.file == "grad_weight" and "<float" in row.kernel  # ldmatrix cannot turn these
        assert ("ldmatrix" in row.instructions) == (matrix and not transposed_32_bits), row


def test_the_library_loads_and_registers_its_operators(tmp_path):
    """In a PyTorch without CUDA one function is missing, the current stream's: with a stand-in for it, all else must be
    there."""
    path = Path(film_kernels.__file__).parent / "_cuda.abi3.so"
    if not path.exists():
        emulation.cuda_tool("nvcc")
        assert os.environ.get("FILM_KERNELS_CUDA") == "0", "setup.py finds nvcc, and builds film_kernels._cuda"
        pytest.skip("FILM_KERNELS_CUDA=0: the library was not built")
    missing = tmp_path / "missing.c"
    missing.write_text("int aoti_torch_get_current_cuda_stream(int device, void** stream) { *stream = 0; return 0; }\n")
    stand_in = tmp_path / "missing.so"
    subprocess.run(["gcc", "-shared", "-fPIC", missing, "-o", stand_in], check=True)
    code = (
        f"import ctypes, torch; ctypes.CDLL({str(stand_in)!r}, ctypes.RTLD_GLOBAL)\n"
        f"torch.ops.load_library({str(path)!r})\n"
        "for name in ('forward', 'grad_input', 'grad_weight', 'recompute', 'norm_forward', 'norm_backward'):\n"
        "    print(torch._C._dispatch_has_kernel_for_dispatch_key(f'film_kernels_cuda::{name}', 'CUDA'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 6, done.stderr


def test_a_wrong_list_of_architectures_is_refused():
    root = emulation.ROOT
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": "Hopper"}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0 and "TORCH_CUDA_ARCH_LIST: 'Hopper' is not of the form" in done.stderr
