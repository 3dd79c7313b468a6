"""Which entry serves a call: the rule's, or within `autotune()` the fastest of all, timed once and remembered.

Nothing here waits for the GPU unless it is timing, and nothing needs triton before a kernel runs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from ...problems.conv_film import ConvFilm
from ...problems.norm_film import NormFilm
from . import norm_tuning, store, tuning
from .launch import precision, recorded

T = TypeVar("T")
Tuned = ConvFilm | NormFilm
Entry = Any  # tuning.Entry of a ConvFilm, norm_tuning.NormEntry of a NormFilm
_REPEATS = 11  # of which the median counts
_WARM_UP = 3

# (problem, precision) -> {"forward": {"entry": [...], "ms": ...}, ..., "vendor": {"forward": ms, ...}}
_records: dict[tuple[Tuned, str], dict] = {}
_chosen: dict[tuple[Tuned, str, str], tuple[Entry, ...]] = {}  # entries in the order in which they are tried


class _State:
    """Of the process, not of a thread: autograd runs a GPU's backward in threads of its own."""

    timing = 0  # blocks of `autotune` that are open
    pinned: Mapping[str, Entry] = {}


_state, _lock = _State(), threading.Lock()


@contextlib.contextmanager
def autotune() -> Iterator[None]:
    """Within the block the first call of every problem, in any thread, times the candidates, PyTorch's own convolution
    or, for `norm_film`, the plain formula among them.

    The fastest serves this problem from then on, in this process and in later ones: measurements are kept on disk per
    GPU, package version and problem, in `store.path()`. Timing waits for the GPU; a call that is being captured in a
    CUDA graph is not timed.
    """
    from .. import forget_choices

    with _lock:
        _state.timing += 1
    forget_choices()  # a choice may be another one inside
    try:
        yield
    finally:
        with _lock:
            _state.timing -= 1
        forget_choices()


@contextlib.contextmanager
def pinned(entry_of: Mapping[str, Entry]) -> Iterator[None]:
    """Within the block the kernels named in `entry_of` use that entry, whatever the rule and the measurements say."""
    before, _state.pinned = _state.pinned, entry_of
    try:
        yield
    finally:
        _state.pinned = before


def run(problem: Tuned, kernel: str, start: Callable[[Entry], T]) -> T:
    """`start` with the entry for `kernel`; an entry that the GPU has no room for gives way to the next."""
    if kernel in _state.pinned:
        return start(_state.pinned[kernel])
    how = precision(problem)
    if is_timing(problem) and kernel not in _record(problem, how):
        _time_entries(problem, how, kernel, start)
    key = (problem, how, kernel)
    candidates = _chosen.get(key)
    if candidates is None:
        candidates = _chosen[key] = _ordered(problem, how, kernel)
    for entry in candidates[:-1]:
        try:
            return start(entry)
        except _no_room():
            _chosen[key] = tuple(e for e in _chosen[key] if e != entry)
    return start(candidates[-1])


def _entries(problem: Tuned, kernel: str) -> tuple[Entry, ...]:
    if isinstance(problem, NormFilm):
        return norm_tuning.entries(problem, kernel)
    return tuning.entries(problem, kernel)


def is_timing(problem: Tuned) -> bool:
    """Whether calls of `problem` are to be timed now."""
    if not _state.timing:
        return False
    return problem.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def compare(problem: Tuned, part: str, ours: Callable[[], object], vendor: Callable[[], object]) -> None:
    """Time `part` ("forward" or "backward") of a whole call, ours against `vendor`, PyTorch's own, once."""
    how = precision(problem)
    record = _record(problem, how)
    if part not in record.get("whole", {}):
        times = {"ours": _milliseconds(problem, ours), "vendor": _milliseconds(problem, vendor)}
        _remember(problem, how, {**record, "whole": {**record.get("whole", {}), part: times}})


def is_measured_to_be_faster(problem: Tuned) -> bool:
    """Whether `problem` was timed against PyTorch's own, forward at least, and these kernels won."""
    whole = _record(problem, precision(problem)).get("whole", {})
    return "forward" in whole and sum(t["ours"] for t in whole.values()) <= sum(t["vendor"] for t in whole.values())


def is_untimed(problem: Tuned) -> bool:
    """Whether `problem` was never timed against PyTorch's own."""
    return "forward" not in _record(problem, precision(problem)).get("whole", {})


def forget() -> None:
    """Forget what was measured or read in this process; what is on disk stays, and is read again."""
    _records.clear()
    _chosen.clear()
    _on_disk.cache_clear()


def _no_room() -> type[Exception]:
    """What triton raises where a tile needs more shared memory or registers than the GPU has."""
    from triton.runtime.errors import OutOfResources

    return OutOfResources


def _time_entries(problem: Tuned, how: str, kernel: str, start: Callable[[Entry], object]) -> None:
    timed: list[tuple[float, Entry]] = []
    for entry in _entries(problem, kernel):
        with contextlib.suppress(_no_room()):
            timed.append((_milliseconds(problem, functools.partial(start, entry)), entry))
    if timed:
        ms, best = min(timed, key=lambda pair: pair[0])
        _remember(problem, how, {**_record(problem, how), kernel: {"entry": list(best), "ms": ms}})


def _milliseconds(problem: Tuned, call: Callable[[], object]) -> float:
    """The median time of `call`, on the GPU's own clock."""
    for _ in range(_WARM_UP):
        call()
    if problem.device.type == "cpu":
        times = []
        for _ in range(_REPEATS):
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
        return statistics.median(times)
    module = torch.get_device_module(problem.device)
    with module.device(problem.device):
        marks = [module.Event(enable_timing=True) for _ in range(_REPEATS + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        module.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def _ordered(problem: Tuned, how: str, kernel: str) -> tuple[Entry, ...]:
    """The candidates, with the one that was measured to be fastest, if it is still one of them, in front."""
    candidates = _entries(problem, kernel)
    best = _record(problem, how).get(kernel, {}).get("entry")
    return tuple(sorted(candidates, key=lambda entry: list(entry) != best))


def _record(problem: Tuned, how: str) -> dict:
    if recorded() is not None:  # for a card that is not at hand, and of which nothing was measured
        return {}
    key = (problem, how)
    record = _records.get(key)
    if record is None:
        record = _records[key] = _as_written(_on_disk(store.path()).get(_name(problem, how), {}))
    return record


def _as_written(record: dict) -> dict:
    """What of a record from disk is as `run` and `compare` write it: someone may have edited it."""
    kept = {
        kernel: record[kernel]
        for kernel in (*tuning.KERNELS, *norm_tuning.KERNELS)
        if isinstance(record.get(kernel), dict)
    }
    if isinstance(whole := record.get("whole"), dict):
        kept["whole"] = {
            part: times for part, times in whole.items()
            if isinstance(times, dict) and all(isinstance(times.get(name), float) for name in ("ours", "vendor"))
        }  # fmt: skip
    return kept


@functools.lru_cache(maxsize=4)
def _on_disk(file) -> dict[str, dict]:
    return store.load(file) or {}


def _remember(problem: Tuned, how: str, record: dict) -> None:
    from .. import forget_choices

    _records[problem, how] = record
    _chosen.clear()
    forget_choices()
    store.save(store.path(), _name(problem, how), record)


@functools.lru_cache(maxsize=4096)
def _name(problem: Tuned, how: str) -> str:
    """GPU, package version, problem and precision, as text."""
    import triton

    from ... import __version__

    device = problem.device
    name = "cpu" if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
    sizes = problem._replace(device=device.type)
    values = " ".join(f"{field}={value}" for field, value in zip(sizes._fields, sizes, strict=True))
    return f"{name} | film_kernels {__version__} | triton {triton.__version__} | {how} | {values}"
