"""Modules outside PyTorch: exported to ONNX, and run by onnxruntime and OpenVINO on the CPU, in float32 and in as many
threads as PyTorch has. For inference.

Both have threads of their own. onnxruntime's go on looking for work for a while when a call has ended, as its users
have it: whoever times one times it by itself (`timing.alone`).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[Sequence[Tensor]], Tensor]  # of all inputs, in order


class NotExported(Exception):
    """A module cannot be exported, or run by a peer; the message says why."""


@contextlib.contextmanager
def exported(module: nn.Module, inputs: tuple[Any, ...]) -> Iterator[Path]:
    """A file that is there within the block: `module` in ONNX, for inputs of these shapes, its parameters constants. By
    torch.export or, where that fails, by tracing."""
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        for dynamo in (True, False):
            try:
                with warnings.catch_warnings(), _silent(), torch.no_grad():
                    warnings.simplefilter("ignore")
                    torch.onnx.export(module, inputs, file, dynamo=dynamo, verbose=False)
            except Exception as error:
                reasons.append(f"{'torch.export' if dynamo else 'tracing'}: {_first_line(error)}")
            else:
                break
        else:
            raise NotExported("; ".join(reasons))
        yield file


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Exporters print their progress, and log what they could not do."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _onnxruntime(file: Path) -> Call:
    onnxruntime = _module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def call(inputs: Sequence[Tensor]) -> Tensor:
        values = {name: t.detach().numpy() for name, t in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, values)[0])

    return call


def _openvino(file: Path) -> Call:
    core = _module("openvino").Core()
    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # it takes bfloat16 by itself where a CPU multiplies it
    }  # fmt: skip
    request = core.compile_model(str(file), "CPU", config).create_infer_request()

    def call(inputs: Sequence[Tensor]) -> Tensor:
        request.infer([t.detach().numpy() for t in inputs], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data)

    return call


RUNTIMES: dict[str, Callable[[Path], Call]] = {"onnxruntime": _onnxruntime, "OpenVINO": _openvino}


def opened(name: str, file: Path) -> Call:
    """What `name` of RUNTIMES makes of an exported module. Its result is there until the next call, its threads as long
    as it is.

    Raises:
        NotExported: it is not installed, or cannot run the module.
    """
    try:
        return RUNTIMES[name](file)
    except NotExported:
        raise
    except Exception as error:
        raise NotExported(f"{name}: {_first_line(error)}") from error


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotExported(f"not installed: pip install {name}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
