"""Compiles CUDA sources for the CPU, on the emulator in tests/emulator."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "emulator"
KERNELS = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "emulator"
TORCH_TARGET_VERSION = "0x020a000000000000"  # as in setup.py

# A kernel reads the same memory as bytes, words and vectors, which C++ compilers may assume that nobody does; a
# register that it never wrote to holds no convenient zero.
FLAGS = ("-std=c++17", "-fPIC", "-fno-strict-aliasing", "-ftrivial-auto-var-init=pattern", "-pthread")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-pragmas")
FAST = ("-O2",)
SANITIZED = (  # an optimizer takes five times as long over their checks, and makes the tests no faster
    "-O0",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
)


def run(command: Sequence[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def _compile(source: Path, target: Path, flags: Sequence[str], newest_header: float) -> None:
    if target.exists() and target.stat().st_mtime > max(source.stat().st_mtime, newest_header):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}.o")
    run(["g++", *flags, "-x", "c++", "-c", source, "-o", unfinished])
    unfinished.replace(target)


def build(
    name: str,
    sources: Sequence[Path],
    *,
    sanitize: bool = False,
    shared: bool = False,
    flags: Sequence[str] = (),
    link: Sequence[str] = (),
) -> Path:
    """A program (or a shared library) of `sources` and the emulator. What is up to date is not built again.

    Args:
        name: of the result, in build/emulator.
        sources: .cu and .cpp files, all compiled as C++.
        sanitize: with AddressSanitizer and UBSan.
        shared: a shared library; else a program that exports its functions' names, so that messages can give them.
        flags: added when compiling the sources.
        link: added when linking.
    """
    kind = SANITIZED if sanitize else FAST
    common = [*FLAGS, *kind, *WARNINGS, f"-I{EMULATOR}", f"-I{KERNELS}"]
    headers = [path for folder in (EMULATOR, ROOT / "csrc") for path in folder.rglob("*.*h")]
    newest = max(path.stat().st_mtime for path in [*headers, Path(__file__)])
    jobs = []
    for source in [*sorted(EMULATOR.glob("*.cpp")), *sources]:
        mine = common if source.parent == EMULATOR else [*common, *flags]
        key = hashlib.sha256(" ".join([*mine, str(source)]).encode()).hexdigest()[:12]
        jobs.append((source, BUILD / "objects" / f"{source.stem}-{key}.o", mine, newest))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda job: _compile(*job), jobs):
            pass
    objects = [target for _, target, _, _ in jobs]
    key = hashlib.sha256(" ".join([*map(str, objects), *link, str(shared)]).encode()).hexdigest()[:12]
    result = BUILD / f"{name}-{key}{'.so' if shared else ''}"
    if not result.exists() or result.stat().st_mtime < max(path.stat().st_mtime for path in objects):
        unfinished = result.with_suffix(f".{os.getpid()}")
        run(["g++", *FLAGS, *kind, "-shared" if shared else "-rdynamic", *objects, *link, "-ldl", "-o", unfinished])
        unfinished.replace(result)
    return result


def cuda_tool(name: str) -> str:
    """The path of a program of the CUDA toolkit, or as Triton brings it.

    Where there is none the test is skipped; in CI, where nothing may go unseen, it fails."""
    import pytest

    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders = [toolkit / "bin"]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = shutil.which(name) or next((str(f / name) for f in folders if (f / name).exists()), None)
    if found is None:
        reason = f"{name} is needed, and is neither on the path nor in {', '.join(map(str, folders))}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


@functools.cache
def cuda_library(sanitize: bool = False, changed: Path | None = None) -> Path:
    """The package's CUDA library, whose kernels then run on the CPU: what FILM_KERNELS_CUDA_EMULATOR names.

    Args:
        sanitize: as `build` has it; Python has to be started with the sanitizers' libraries loaded.
        changed: a folder with other versions of some of the sources, and of headers that these include.
    """
    from torch.utils import cpp_extension

    flags = ["-DFILM_EMULATED", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-fvisibility=hidden"]
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-lc10"]
    sources = {path.name: path for path in sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cpp")])}
    if changed is not None:
        sources |= {path.name: path for path in changed.glob("*.cu")}
    return build(
        "film_kernels_cuda",
        list(sources.values()),
        sanitize=sanitize,
        shared=True,
        flags=[*flags, *includes],
        link=libraries,
    )
