"""The parts of `make check-gpu`, the one command for a machine with a GPU and no network: are the kernels right, and
how fast.

Each part has its own limit and goes on if another failed. What comes first is what a wrong result would spoil the rest
for. At most eight files are written.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .parts import Part

SMOKE, TIMES, LOG, SUMMARY = "smoke.json", "times.json", "log.txt", "summary.txt"
_BACKENDS = {False: ("cuda", "triton", "vendor"), True: ("cpu", "vendor", "reference")}  # by whether the run is dry
_PROFILED = {  # by what is profiled: words for bench.one_layer after the backend
    "convolution": ("ivadomed channels_last half", "CLEVR channels_last half", "--keep", "least", "--steps", "1"),
    "norm": ("GroupNorm, guided-diffusion channels_last half", "LayerNorm, DiT half", "RMSNorm, pixel diffusion half",
             "--steps", "1"),
}  # fmt: skip
_SANITIZED = ("tutorial N=32", "CLEVR channels_last half", "GroupNorm, DDPM half", "RMSNorm, pixel diffusion half")
_KERNELS = "regex:film|forward|grad_|recompute|pass_|norm_|finish"
_NCU = ("--clock-control", "none", "--set", "full", "--import-source", "no", "--kernel-name", _KERNELS,
        "--launch-count", "20", "--page", "details")  # fmt: skip
_LOG_BYTES = 14 << 20
_ON_THE_CARD = ["--device", "cuda"]
_UNTIMED = 0.3  # of the time that there is, for all that may run side by side
_DRY_SECONDS = 15.0  # at most, of a part that would use what time it has


def parts(dry: bool, out: Path) -> list[Part | Sequence[Part]]:
    """All of them, in order; what is not timed runs side by side. In a dry run the same commands try small layers on
    the CPU, and profilers that are not there are left out of theirs."""
    device = ["--device", "cpu"] if dry else []
    tiny = ["--tiny"] if dry else []
    ours = _BACKENDS[dry]

    def python(*words: str) -> list[str]:
        return [sys.executable, *words]

    def until(seconds: float) -> str:
        return f"{min(seconds, _DRY_SECONDS) if dry else seconds:.0f}"

    def profiled(what: str) -> Part:
        words = _tool("ncu", *_NCU, "--log-file", str(out / f"{what}.txt"))
        words += python("-m", "bench.one_layer", ours[0], *_PROFILED[what], *device, *tiny)
        return Part(f"profile {what}", lambda seconds: words, 0.6)

    def sanitized(tool: str) -> Part:
        words = _tool("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
        words += python("-m", "bench.one_layer", ours[0], *_SANITIZED, "--tiny", "--steps", "1", *device)
        return Part(tool, lambda seconds: words, _UNTIMED)

    workers = ["-n", "4"] if importlib.util.find_spec("xdist") and not dry else []
    tests = ["-m", "pytest", "-q", "--tb=short", "-p", "bench.failures", "-p", "no:cacheprovider", *workers,
             "tests/gpu"]  # fmt: skip
    return [
        Part("libraries", lambda seconds: python("-m", "bench.libraries"), 0.37),
        (
            Part("smoke", lambda seconds: python("-m", "bench.smoke", *ours, *device, *tiny, "--seconds",
                                                 until(0.8 * seconds), "--out", str(out / SMOKE)), _UNTIMED),
            Part("tests", lambda seconds: python(*tests), _UNTIMED),
            Part("demo", lambda seconds: python("-m", "examples.tutorial", "--epochs", "2", *(device or _ON_THE_CARD),
                                                "--output", str(out / "demo.png")), _UNTIMED),
            sanitized("memcheck"),
            sanitized("racecheck"),
        ),
        Part("compile ahead", lambda seconds: python("-m", "bench.compile_ahead", *device, *tiny, "--seconds",
                                                     until(0.8 * seconds)), 0.25),
        Part("times", lambda seconds: python("-m", "bench.first_times", *device, *tiny, "--seconds",
                                             until(0.9 * seconds), "--out", str(out / TIMES)), 0.75),
        *map(profiled, _PROFILED),
    ]  # fmt: skip


def _tool(name: str, *words: str) -> list[str]:
    """The words that put a command under a tool; none where it is not installed."""
    return [name, *words] if shutil.which(name) else []


def tail(log: Path) -> None:
    """Leave the end of a log that is too long to be sent."""
    size = log.stat().st_size
    if size > _LOG_BYTES:
        with log.open("rb") as file:
            file.seek(size - _LOG_BYTES)
            end = file.read()
        log.write_bytes(end)


def variables() -> dict[str, str]:
    """What the parts' environment has beside this one's: compiled kernels are kept in the checkout, and CUDA's are
    loaded when they are called."""
    here = Path(__file__).resolve().parents[1]
    return {
        "PYTHONUNBUFFERED": "1", "CUDA_MODULE_LOADING": "LAZY",
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(here / "build" / "triton-cache")),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(here / "build" / "inductor-cache")),
    }  # fmt: skip
