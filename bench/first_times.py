"""`python -m bench.first_times`: a few layers in the time that there is, for a first look at a machine.

`python -m bench gpu` measures all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.arguments import positive

from . import limits, machine
from .outcomes import Outcome, Timed
from .peers import PEERS
from .runner import Budget, Runner
from .shapes import ROWS, TINY, Row
from .tables import table
from .timing import Rounds
from .work import CALLS

_FIRST = (  # what matters most: the last may come too late
    "LayerNorm, DiT half",
    "ivadomed channels_last half",
    "GroupNorm, guided-diffusion channels_last half",
    "CLEVR channels_last half",
    "RMSNorm, pixel diffusion channels_last half",
    "GroupNorm, DDPM channels_last half",
    "tutorial N=32",
    "BatchNorm, ResNet channels_last half",
    "GroupNorm, guided-diffusion half",
    "PDEArena channels_last half",
    "InstanceNorm, style transfer channels_last half",
    "RMSNorm, pixel diffusion half",
    "tutorial N=32 channels_last half",
    "GroupNorm, SR3 channels_last half",
    "GroupNorm, DDPM half",
    "guided-diffusion channels_last float16",
    "GroupNorm, latent diffusion channels_last half",
    "LIBERO channels_last half",
    "GroupNorm, guided-diffusion channels_last",
    "GroupNorm, U-Net's middle channels_last half",
    "BabyAI channels_last half",
    "F.normalize, pixel diffusion channels_last half",
    "InstanceNorm, style transfer half",
    "RT-1 channels_last half",
    "LayerNorm, DiT",
    "GroupNorm, diffusion-policy half",
    "CLEVR channels_last",
    "GroupNorm, SR3 half",
    "CNAPs channels_last half",
    "BatchNorm, ResNet half",
    "RMSNorm, pixel diffusion channels_last",
    "cunet channels_last half",
    "diffusion-policy half",
    "micro-tcn half",
    "LaSAFT",
)
_ROWS = (*_FIRST, *(name for name in ROWS if name not in _FIRST))
_KINDS = ("forward", "training")
_OTHERS = ("reference", "automatic")  # of ours: the one is plain PyTorch, the other one of the rest
PEERS_MEASURED = (
    "plain",
    "torch.compile",
    *(name for name, peer in PEERS.items() if peer.ours and name not in _OTHERS),
)
_ROUNDS = Rounds(least=7, most=15)
_ALGORITHMS = 4  # of the library's convolutions, the likeliest: to time ten of each takes seconds a row
_CALLS = ("plain", "torch.compile", "automatic")
_SHARES = 30  # a row may have this part of what time is left: most take what was compiled before from the caches


def pairs(tiny: bool) -> list[tuple[Row, str]]:
    """What is measured, in order: rows and kinds."""
    return [(replace(ROWS[name], tiny=tiny), kind) for name in _ROWS for kind in _KINDS]


def measure(
    device: torch.device, seconds: float, tiny: bool, names: tuple[str, ...] = PEERS_MEASURED
) -> list[dict[str, Any]]:
    """A dictionary for each row and kind: the median microseconds of each peer, or why there are none."""
    runner = Runner(device, Budget(seconds, _SHARES), Rounds(2, 3) if tiny else _ROUNDS, not tiny)
    torch.backends.cudnn.benchmark_limit = _ALGORITHMS
    calls = [(row, kind, _CALLS) for row in TINY.values() for kind in CALLS]
    found = []
    for row, kind, peers in [*calls, *((row, kind, names) for row, kind in pairs(tiny))]:
        if runner.budget.left() <= 0:
            break
        begin = time.monotonic()
        try:
            outcomes: Mapping[str, Outcome] = runner.measure(row, kind, peers)
            told: dict[str, Any] = {"peers": {peer: _told(one) for peer, one in outcomes.items()}}
        except Exception as error:
            told = {"wrong": f"{type(error).__name__}: {error}"}
        found.append({"row": row.name, "kind": kind, **told, "seconds": round(time.monotonic() - begin, 1)})
        print(json.dumps(found[-1]), flush=True)
    return found


def _told(outcome: Outcome) -> Any:
    if not isinstance(outcome, Timed):
        return outcome.reason
    share = outcome.about.get("share_of_limit")
    median = round(statistics.median(outcome.times) * 1e6, 1)
    return {"us": median, "least": round(min(outcome.times) * 1e6, 1), "share_of_limit": share}


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """A table: how many times as long plain PyTorch takes as each peer."""
    lines = []
    timed = {peer for one in found for peer, told in one.get("peers", {}).items() if isinstance(told, dict)}
    others = [peer for peer in dict.fromkeys((*PEERS_MEASURED[1:], *_CALLS[1:])) if peer in timed]
    for one in found:
        peers = one.get("peers", {})
        times = {peer: told["us"] for peer, told in peers.items() if isinstance(told, dict)}
        if "plain" not in times:
            continue
        ratios = [f"{times['plain'] / times[peer]:.2f}" if peer in times else "-" for peer in others]
        lines.append([f"{one['row']}, {one['kind']}", f"{times['plain']:.0f}", *ratios])
    return table(["plain PyTorch / ...", "plain us", *others], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where a result was wrong or nothing could be timed."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_times", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=positive, default=120.0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--peers", nargs="+", choices=PEERS_MEASURED, default=PEERS_MEASURED, metavar="PEER")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    found = measure(device, options.seconds, options.tiny, tuple(options.peers))
    peaks = {str(dtype)[6:]: one._asdict() for dtype, one in limits.MEASURED.items()}
    if options.out is not None:
        everything = {"machine": machine.describe(device), "peaks": peaks, "rows": found}
        options.out.write_text(json.dumps(everything, indent=1) + "\n")
    for dtype, one in limits.MEASURED.items():
        print(f"{str(dtype)[6:]}: {one.flops / 1e12:.0f} TFLOP/s, copy {one.bandwidth / 1e12:.2f} TB/s")
    print(summary(found))
    wrong = [one for one in found if "wrong" in one]
    wrong += [
        {**one, "peer": peer, "reason": told}
        for one in found
        for peer, told in one.get("peers", {}).items()
        if isinstance(told, str) and "wrong" in told
    ]
    return int(bool(wrong) or not any("peers" in one for one in found))


if __name__ == "__main__":
    sys.exit(main())
