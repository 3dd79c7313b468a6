"""These tests run the Triton kernels in Triton's interpreter, on the CPU."""

import importlib.util
import os

import pytest
import torch

_spec = importlib.util.find_spec("triton")
if _spec is None or _spec.origin is None:  # optional; this very folder is found where it is not installed
    collect_ignore_glob = ["test_*.py"]
os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported


@pytest.fixture(autouse=True)
def _round_bfloat16_as_gpus_do(monkeypatch):
    """To the nearest, where the interpreter cuts digits off."""
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        return torch.tensor(values).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


@pytest.fixture(autouse=True)
def _unchecked(request):
    """The interpreter's check of every integer sum for overflow takes half of the time: only tests with "overflow" in
    their name have it on."""
    from triton.runtime.interpreter import interpreter_builder as builder

    before, builder.options = builder.options, type(builder.options)(sanitize_overflow="overflow" in request.node.name)
    yield
    builder.options = before
