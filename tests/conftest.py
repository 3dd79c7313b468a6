"""One fixture, `backend`, runs a test on every backend of this machine."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import film_kernels
from film_kernels.backends import vendor
from tests.helpers import emulation
from tests.helpers.cases import EMULATED, EXPECTED, INTERPRETED, float32_products, has_one_pass

OPTIONAL = ("triton", "PIL", "matplotlib", "tqdm", "wordllama")  # tests that need them are skipped without

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: its kernels run on the CPU, slowly


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes or many gigabytes; run with --slow")
    config.addinivalue_line("markers", "judged: whether a site gains anything is asked, as users have it")
    torch.manual_seed(0)
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("CI"):
        raise pytest.UsageError(f"tests would be skipped, which in CI nobody sees, for want of {', '.join(missing)}")
    wanted, package = config.getoption("--package-in"), Path(film_kernels.__file__).parents[1]
    if wanted is not None and Path(wanted).resolve() != package.resolve():
        raise pytest.UsageError(f"film_kernels was imported from {package}, not from {wanted}")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--package-in", metavar="FOLDER", help="refuse to run where film_kernels comes from anywhere else")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(params=(*EXPECTED, *INTERPRETED, *EMULATED))
def backend(request, monkeypatch):
    """The name of a backend. "vendor_one_pass" is `vendor` with Triton's passes, which it has on GPUs; "cuda_0" and so
    on is `cuda` in the emulator with that seed."""
    name = request.param
    if name in INTERPRETED:
        request.getfixturevalue("interpreter")
    if name == "vendor_one_pass":
        monkeypatch.setattr(vendor, "has_one_pass", has_one_pass)
        name = "vendor"
    if name in EMULATED:
        request.getfixturevalue("emulator")(int(name.removeprefix("cuda_")))
        name = "cuda"
    reason = film_kernels.available_backends()[name]
    assert reason is None, f"{name} is not available: {reason}"
    return name


@pytest.fixture
def emulator(monkeypatch):
    """Makes the backend `cuda` serve on the CPU, by its kernels' sources; gives what sets the seed."""
    if not emulation.KERNELS.is_dir():
        pytest.skip("a wheel's tests have no sources to run in the emulator")
    path = emulation.cuda_library(sanitize="FILM_KERNELS_SANITIZED" in os.environ)
    monkeypatch.setenv("FILM_KERNELS_CUDA_EMULATOR", str(path))
    with float32_products("ieee"):  # as on the CPU, where the tests' expectations come from
        yield ctypes.CDLL(str(path)).film_emulator_set_seed


@pytest.fixture
def interpreter(request, monkeypatch):
    """Triton's interpreter, brought nearer to what a GPU does."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's kernels run on the GPU that is here, in tests/gpu, and not in the interpreter")
    from triton import language as tl
    from triton.runtime import interpreter

    convert, patch = interpreter._convert_float, interpreter._patch_lang_tensor

    def rounded(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        return torch.tensor(values).bfloat16().view(torch.uint16).numpy()

    def halved(self, input):
        input = input[0] if isinstance(input, tuple) else input
        data = input.handle.data
        while data.shape[self.axis] > 1:
            data = np.add(*np.split(data, 2, self.axis))
        kept = data if self.keep_dims else data.squeeze(self.axis)
        return self.to_tensor(kept, input.dtype)

    def indexed(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    # Triton 3.6 makes an integer of an array of one element, which NumPy 2.4 refuses
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", indexed)
    # the elements of a tile are added by halving it, where the interpreter adds one after another
    monkeypatch.setattr(interpreter.ReduceOps, "sum", halved)
    # bfloat16 is rounded to the nearest, where the interpreter cuts digits off
    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    # its check of every integer sum for overflow takes half of the time: only tests of that name have it on
    options = type(interpreter.interpreter_builder.options)(sanitize_overflow="overflow" in request.node.name)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)


@pytest.fixture(autouse=True)
def _no_pin_from_outside(monkeypatch):
    if "FILM_KERNELS_BACKEND" in os.environ:
        monkeypatch.delenv("FILM_KERNELS_BACKEND")


@pytest.fixture
def one_thread():
    """For thousands of calls too small to share out, where waiting for a second thread is most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
