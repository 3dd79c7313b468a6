"""Commands run one after the other, or some of them side by side, within one time budget: each goes on if another
fails, and none may take it all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_GRACE = 20.0  # seconds to say what there is to say after an interrupt
_OVERTIME = 1.3  # a part that keeps its own time is stopped only where it does not
_POLL = 0.05


@dataclass(frozen=True)
class Part:
    """`command(seconds)` gives the words of a command that may take about so long; `share` of what is left is its."""

    name: str
    command: Callable[[float], Sequence[str]]
    share: float


@dataclass(frozen=True)
class Done:
    """How a part ended."""

    name: str
    failed: bool
    line: str


@dataclass(frozen=True)
class _Started:
    part: Part
    process: subprocess.Popen
    output: Path
    begin: float
    until: float


def run(parts: Sequence[Part | Sequence[Part]], budget: float, log: Path) -> list[Done]:
    """Run `parts` in order, those of an inner sequence at the same time, within `budget` seconds; output goes to the
    file `log`, progress bars (stderr's) are shown.

    A part that takes longer than its share is interrupted, then killed. None raises: what went wrong is in its Done."""
    end = time.monotonic() + budget
    done: list[Done] = []
    with log.open("wb") as output:
        for step in parts:
            together = [step] if isinstance(step, Part) else list(step)
            left = end - time.monotonic()
            if left <= 1:
                late = [Done(part.name, True, "not begun: the time budget was spent") for part in together]
                done += late
                for one in late:
                    print(f"{one.name}: {one.line}", flush=True)
            else:
                done += _side_by_side(together, left, log, output)
    return done


def _side_by_side(parts: Sequence[Part], left: float, log: Path, output: IO[bytes]) -> list[Done]:
    """How each ended, in their order; what they printed is appended to `output` in it, too."""
    ended: dict[str, Done] = {}
    running: list[_Started] = []
    for at, part in enumerate(parts):
        seconds = part.share * left
        print(f"== {part.name} (up to {seconds:.0f} s)", flush=True)
        own = log.with_name(f"{log.name}.{at}")
        begin = time.monotonic()
        try:
            with own.open("wb") as file:
                process = subprocess.Popen(
                    part.command(seconds), stdout=file, start_new_session=True, preexec_fn=_heed_interrupts
                )
        except OSError as error:
            ended[part.name] = Done(part.name, True, f"could not be started: {error}")
            continue
        running.append(_Started(part, process, own, begin, begin + min(left - 1, _OVERTIME * seconds)))
    try:
        while len(ended) < len(parts):
            for one in [one for one in running if one.part.name not in ended]:
                runs = one.process.poll() is None
                if runs and time.monotonic() < one.until:
                    continue
                if runs:
                    _stop(one.process)
                ended[one.part.name] = _how_it_ended(one, stopped=runs)
            time.sleep(_POLL)
    finally:
        for one in running:
            if one.process.poll() is None:
                _stop(one.process)
        for at, part in enumerate(parts):
            own = log.with_name(f"{log.name}.{at}")
            output.write(f"\n== {part.name}\n".encode())
            output.write(own.read_bytes() if own.exists() else b"")
            output.flush()
            own.unlink(missing_ok=True)
    for part in parts:
        print(f"{part.name}: {ended[part.name].line}", flush=True)
    return [ended[part.name] for part in parts]


def _how_it_ended(one: _Started, stopped: bool) -> Done:
    took = f"{time.monotonic() - one.begin:.0f} s"
    lines = [line.strip() for line in one.output.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "(no output)"
    if stopped:
        return Done(one.part.name, True, f"stopped after {took}, when its time was spent; it said: {last}")
    code = one.process.returncode
    said = "passed" if code == 0 else f"FAILED (exit code {code})"
    return Done(one.part.name, code != 0, f"{said} in {took}: {last}")


def _heed_interrupts() -> None:
    """In the command's process: a shell's background job (`make bench-gpu &`) ignores them, and what it starts too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen) -> None:
    """Interrupt the command and all that it started (pytest then still writes what it has), and kill what remains."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return
