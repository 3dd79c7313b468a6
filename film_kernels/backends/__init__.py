"""The ordered list of backends, and the choice of one for a problem."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterator

import torch

from ..identity import by_identity
from ..problems import Problem
from .base import Backend, Kernels
from .cpu import Cpu
from .cuda import Cuda
from .plain import Plain
from .triton.backend import Triton
from .vendor import Vendor

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Cpu(), Cuda(), Triton(), Vendor(), Plain())}


_pins: contextvars.ContextVar[tuple[list[str], ...]] = contextvars.ContextVar("film_kernels_pins", default=())
_VARIABLE = "FILM_KERNELS_BACKEND"
# os.environ raises and catches a KeyError for a variable that is not set, which costs as much as a call's other checks
# together. The dictionary behind it, which this Python may not have, tells first.
_KEY = os.environ.encodekey(_VARIABLE)
_ENVIRONMENT = getattr(os.environ, "_data", {_KEY: _VARIABLE})


class _Traced(threading.local):
    """The pin as torch.compile sees it, which traces no ContextVar: that of the block entered or left last in this
    thread."""

    backend: str | None = None


_traced = _Traced()


def available_backends() -> dict[str, str | None]:
    """Each backend in the order of choice, and None where it is available or the reason why it is not."""
    return {name: backend.unavailable() for name, backend in BACKENDS.items()}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the `with` block, calls use the backend `name` and no other: calls of this thread and coroutine, and of
    those that it starts with a copy of its context, as `asyncio` does.

    The environment variable FILM_KERNELS_BACKEND is stronger, and `backend=` on a call is stronger still.

    Raises:
        ValueError: `name` is not one of `available_backends()`. A backend that is there but cannot serve a call
            raises at that call, and says why.
    """
    check_backend("name", name)
    if torch.compiler.is_compiling():
        before, _traced.backend = _traced.backend, name
        try:
            yield
        finally:
            _traced.backend = before
        return
    pin = [name]  # which is itself and no other: blocks of coroutines and generators end in any order
    _pins.set((*_pins.get(), pin))
    _traced.backend = name
    try:
        yield
    finally:
        _pins.set(tuple(other for other in _pins.get() if other is not pin))
        _traced.backend = _innermost()


def _innermost() -> str | None:
    pins = _pins.get()
    return pins[-1][0] if pins else None


def pinned(backend: str | None) -> str | None:
    """The backend that the caller insists on, from `backend=`, FILM_KERNELS_BACKEND or `use_backend`, or None."""
    if backend is not None:
        check_backend("backend", backend)
        return backend
    compiling = torch.compiler.is_compiling()
    variable = os.environ.get(_VARIABLE) if compiling or _KEY in _ENVIRONMENT else None
    if variable:
        check_backend(_VARIABLE, variable)
        return variable
    return _traced.backend if compiling else _innermost()


def is_pinned() -> bool:
    """Whether there may be a pin beside `backend=`, asked in as little time as there is."""
    return _KEY in _ENVIRONMENT or bool(_pins.get())


def choose(problem: Problem, pin: str | None) -> Backend:
    """The backend for `problem`: the pinned one, or the first in the list that can serve and is not slow.

    Raises ValueError where the pinned one cannot, with its reason, or where a setting of the environment is wrong.
    """
    if pin is not None:
        backend = BACKENDS[pin]
        reason = backend.unavailable() or backend.why_not(problem)
        if reason is not None:
            raise ValueError(f"backend {pin!r} cannot serve this call: {reason}")
        return backend
    for backend in BACKENDS.values():
        backend.check_settings()
    able = [b for b in BACKENDS.values() if b.unavailable() is None and b.why_not(problem) is None]
    return next((b for b in able if not b.of(problem).is_slow(problem)), able[0])


def goes_plain(problem: Problem) -> bool:
    """Whether the plain formula is the choice for `problem` without a pin, as far as whoever traces can ask: so that it
    is traced itself, in place of an operator that runs it."""
    vendor = BACKENDS["vendor"]
    return vendor.why_not(problem) is not None or (problem.device.type != "cpu" and vendor.of(problem).is_slow(problem))


@by_identity
def _remembered(problem: Problem, pin: str | None) -> Kernels | None:
    """None where the choice depends on PyTorch's setting for float32 convolutions on GPUs as well."""
    if problem.dtype is torch.float32 and problem.device.type == "cuda":
        return None
    return choose(problem, pin).of(problem)


@by_identity
def _remembered_with(problem: Problem, pin: str | None, precision: str) -> Kernels:
    return choose(problem, pin).of(problem)


def remembered_choice(problem: Problem, pin: str | None) -> Kernels:
    """The kernels of the backend that `choose` chooses, worked out once for what that depends on."""
    found = _remembered(problem, pin)
    if found is not None:
        return found
    return _remembered_with(problem, pin, torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


_made_from_choices: list[Callable[[], None]] = []


def forget_with_choices(clear: Callable[[], None]) -> None:
    """`clear` is called wherever choices are forgotten."""
    _made_from_choices.append(clear)


def forget_choices() -> None:
    """What was remembered may not hold any more."""
    _remembered.cache_clear()
    _remembered_with.cache_clear()
    for clear in _made_from_choices:
        clear()


def check_backend(argument: str, name: object) -> None:
    """Raise ValueError, naming `argument`, unless `name` is a backend's."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
