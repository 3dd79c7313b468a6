"""`python -m bench.compile_ahead`: what the peers of `bench.first_times` compile is compiled by many processes at once,
so that the one process that measures finds it in the caches on disk.

What torch.compile measured of its own kernels meanwhile is thrown away where TORCHINDUCTOR_CACHE_DIR says where it is,
for other processes were on the device.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.arguments import positive

from .first_times import PEERS_MEASURED, pairs
from .peers import PEERS, call_of
from .work import STEPS, make

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_MEASURED_BY_THE_COMPILER = "*.best_config"


def compile_share(
    device: torch.device, seconds: float, tiny: bool, peers: Sequence[str], first: int, every: int
) -> int:
    """Run each peer once on each `every`-th row, from the row `first` on, for so long. Returns how many rows."""
    end, done = time.monotonic() + seconds, 0
    names = [name for name in peers if not (tiny and PEERS[name].compiled)]
    for row, kind in pairs(tiny)[first::every]:
        if time.monotonic() > end:
            break
        torch.compiler.reset()
        work = make(row, device)
        for name in names:
            with contextlib.suppress(Exception):  # what is wrong with a peer is said where it is measured
                call, own = call_of(PEERS[name], work, kind == "training")
                STEPS[kind](call, own)()
        done += 1
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where nothing was compiled."""
    parser = argparse.ArgumentParser(prog="python -m bench.compile_ahead", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=positive, default=90.0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers", nargs="+", choices=PEERS_MEASURED, default=PEERS_MEASURED, metavar="PEER")
    parser.add_argument("--first", type=int, help="in one process, every so many rows from this one on")
    options = parser.parse_args(argv)
    if options.first is not None:
        device = torch.device(options.device)
        share = options.first, options.processes
        print(compile_share(device, options.seconds, options.tiny, options.peers, *share), flush=True)
        return 0
    begin = time.monotonic()
    words = [sys.executable, "-m", "bench.compile_ahead", f"--device={options.device}", f"--seconds={options.seconds}"]
    words += [f"--processes={options.processes}", "--peers", *options.peers, *(["--tiny"] if options.tiny else [])]
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    shares = [
        subprocess.Popen([*words, f"--first={first}"], env=environment, stdout=subprocess.PIPE, text=True)
        for first in range(options.processes)
    ]
    said = [share.communicate()[0].split() for share in shares]
    done = sum(int(words[-1]) for words in said if words)
    if (cache := os.environ.get(_CACHE)) is not None:
        for measured in Path(cache).rglob(_MEASURED_BY_THE_COMPILER):
            measured.unlink()
    print(f"{done} of {len(pairs(options.tiny))} rows and kinds in {time.monotonic() - begin:.0f} s, "
          f"{options.processes} processes")  # fmt: skip
    return int(done == 0)


if __name__ == "__main__":
    sys.exit(main())
