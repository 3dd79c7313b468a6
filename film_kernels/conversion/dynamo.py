"""PyTorch's Dynamo with settings of its own for our captures, which nobody else's see, and where it is turned off."""

from __future__ import annotations

import builtins
import contextlib
import itertools
import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

_numbers = itertools.count()
_said: set[str] = set()
_MANY = 64  # captures of one piece of code, to speak of
_SETTINGS = {
    # Dynamo counts how often it has captured a function, and from the ninth time runs it uncaptured without a word.
    "recompile_limit": 1 << 30,
    "accumulated_recompile_limit": 1 << 30,
    # Otherwise hooks that are registered after the first call are not seen.
    "skip_nnmodule_hook_guards": False,
    # A module that counts its calls, `self.step += 1`, would be captured at every one of them.
    "allow_unspec_int_on_nn_module": True,
    # `.item()` or `nonzero()` between a convolution and its FiLM would cut the graph between the two.
    "capture_scalar_outputs": True,
    "capture_dynamic_output_shape_ops": True,
    # It cuts graphs at the sizes of DistributedDataParallel's buckets, for the sake of a compiled backward.
    "optimize_ddp": False,
}

# Dynamo raises errors of its own where a size comes from such a number, as in `x.view(n, np.prod(sizes), c)`. Cut
# there, the rest of the frame is captured all the same.
_CUTTING = {"capture_scalar_outputs": False, "capture_dynamic_output_shape_ops": False}


def captured(
    function: Callable[..., Any],
    backend: Callable[..., Any],
    *,
    watch: Watch,
    dynamic: bool | None = None,
    modules_stay: bool = False,
) -> Callable[..., Any]:
    """`function`, which uses no globals, run in the graphs that Dynamo captures and `backend` makes something of;
    `watch` is told of the captures. Where `modules_stay` as they were at their capture, calls do not look at them.

    The settings hold while Dynamo captures only: put around each call they would cost as much as the call, and what the
    function calls would see them.
    """
    filter_guards = torch.compiler.skip_guard_on_all_nn_modules_unsafe if modules_stay else None
    context: Any = torch._dynamo.optimize(backend, dynamic=dynamic, guard_filter_fn=filter_guards)
    if getattr(context, "callback", None) is not None:  # None where Dynamo is turned off
        context.callback = _Callback(context.callback, watch)
    return context(_of_its_own(function))


class Watch:
    """What becomes of the captures of one function. `name` is what a user knows it by."""

    def __init__(self, name: str) -> None:
        self.number = 0
        self._name = name
        self._numbers: dict[types.CodeType, int] = {}
        self._failed: set[types.CodeType] = set()

    def begins(self, code: types.CodeType) -> None:
        self.number += 1
        number = self._numbers[code] = self._numbers.get(code, 0) + 1
        if number == _MANY:
            warnings.warn(
                f"film_kernels has captured {self._name} {number} times, as its arguments or attributes keep changing. "
                "Each time takes a while: the environment variable TORCH_LOGS=recompiles shows what changes",
                stacklevel=2,
            )

    def fails(self, code: types.CodeType) -> bool:
        """Whether `code` is to be left uncaptured from now on, as Dynamo has it: only where it has failed before, and
        what called it did not raise. Otherwise one call with bad arguments would be the end of it."""
        again = code in self._failed
        self._failed.add(code)
        return again

    def raised(self) -> None:
        """The function has raised an exception, which Dynamo cannot capture either."""
        self._failed.clear()


class _Callback:
    """What Dynamo calls where no graph that it has serves."""

    def __init__(self, callback: Any, watch: Watch) -> None:
        # Dynamo tells graphs of one backend from those of another by what it finds under this name.
        self._torchdynamo_orig_backend = callback
        self._watch = watch

    def __call__(self, frame: Any, *args: Any) -> Any:
        from torch._dynamo import exc, types, utils

        config: Any = torch._dynamo.config
        if config.disable:  # for now: Dynamo itself would leave this code uncaptured for good
            nothing = types.FrameExecStrategy(types.FrameAction.SKIP, types.FrameAction.SKIP)
            return types.ConvertFrameReturn(frame_exec_strategy=nothing, apply_to_code=False)
        frames = utils.counters["frames"]
        failures = frames["total"] - frames["ok"]
        self._watch.begins(frame.f_code)
        result, failed = types.ConvertFrameReturn(), True  # run as it is, it may raise what its user knows
        for settings in (_SETTINGS, _SETTINGS | _CUTTING):
            try:
                with config.patch(**settings):
                    result = self._torchdynamo_orig_backend(frame, *args)
                failed = frames["total"] - frames["ok"] > failures
                break
            except (exc.TorchRuntimeError, exc.InternalTorchDynamoError) as error:
                if isinstance(error, getattr(exc, "ResumePrologueTracingError", ())):
                    raise  # it is too late to run this as it was
                if isinstance(error, exc.TorchRuntimeError):
                    break
        if failed:
            result.apply_to_code = self._watch.fails(frame.f_code)
        return result


def _of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a code object and name of its own: Dynamo keeps its graphs at the one, and remembers by the other
    which sizes have changed; what it saw of one model is not another's."""
    code = function.__code__  # type: ignore[attr-defined]
    return types.FunctionType(code.replace(co_name=f"{code.co_name}_{next(_numbers)}"), {"__builtins__": builtins})


def why_off() -> str | None:
    """What keeps Dynamo from capturing anything, for an error message; None where nothing does."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "TORCHDYNAMO_DISABLE=1"
    if "torch._dynamo" not in sys.modules:
        return None  # and it takes seconds to import
    if torch._dynamo.config.disable:
        return "torch._dynamo.config.disable"
    with contextlib.suppress(AttributeError):  # torch.compiler can set a stance, and does not tell which is set
        stance = torch._dynamo.eval_frame._stance.stance
        if stance == "force_eager":
            return 'torch.compiler.set_stance("force_eager")'
    return None


def say_if_off() -> None:
    """Warn where Dynamo is turned off, once for each way of doing that."""
    reason = why_off()
    if reason is not None and reason not in _said:
        _said.add(reason)
        warnings.warn(f"{reason}: without Dynamo, models run as they are, unfused by film_kernels", stacklevel=3)
