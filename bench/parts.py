"""Commands run one after the other within one time budget: each goes on if another fails, and none may take it all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_GRACE = 20.0  # seconds to say what there is to say after an interrupt
_OVERTIME = 1.3  # a part that keeps its own time is stopped only where it does not


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


def run(parts: Sequence[Part], budget: float, log: Path) -> list[Done]:
    """Run `parts` in order within `budget` seconds; output goes to the file `log`, progress bars (stderr's) are shown.

    A part that takes longer than its share is interrupted, then killed. None raises: what went wrong is in its Done."""
    end = time.monotonic() + budget
    done = []
    with log.open("w") as output:
        for part in parts:
            left = end - time.monotonic()
            if left <= 1:
                done.append(Done(part.name, True, "not begun: the time budget was spent"))
            else:
                output.write(f"\n== {part.name}\n")
                output.flush()
                print(f"== {part.name} (up to {part.share * left:.0f} s)", flush=True)
                done.append(_run(part, part.share * left, min(left - 1, _OVERTIME * part.share * left), log, output))
            print(f"{done[-1].name}: {done[-1].line}", flush=True)
    return done


def _run(part: Part, seconds: float, at_most: float, log: Path, output) -> Done:
    begin, start = time.monotonic(), output.tell()
    try:
        process = subprocess.Popen(
            part.command(seconds), stdout=output, start_new_session=True, preexec_fn=_heed_interrupts
        )
    except OSError as error:
        return Done(part.name, True, f"could not be started: {error}")
    stopped = False
    try:
        process.wait(at_most)
    except subprocess.TimeoutExpired:
        stopped = True
        _stop(process)
    except KeyboardInterrupt:
        _stop(process)
        raise
    took = f"{time.monotonic() - begin:.0f} s"
    with log.open(errors="replace") as written:
        written.seek(start)
        lines = [line.strip() for line in written.read().splitlines() if line.strip()]
    last = lines[-1] if lines else "(no output)"
    if stopped:
        return Done(part.name, True, f"stopped after {took}, when its time was spent; it said: {last}")
    said = "passed" if process.returncode == 0 else f"FAILED (exit code {process.returncode})"
    return Done(part.name, process.returncode != 0, f"{said} in {took}: {last}")


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
