"""The emulator that CUDA sources run on without a GPU: that it does what the card does, and catches what it is for.

The checks themselves are in tests/emulator/checks: kernels and what must come of them. Also here: the header of inline
PTX that the emulator stands in for goes through nvcc, and each instruction is in the machine code.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers import emulation

CHECKS = emulation.EMULATOR / "checks"
NAMES = [
    name for path in sorted(CHECKS.glob("*.cu")) for name in re.findall(r"^CHECK\((\w+)\)", path.read_text(), re.M)
]
BEYOND = [name for name in NAMES if name.startswith("beyond_")]
PLAIN = [name for name in NAMES if name not in [*BEYOND, "convert"]]

pytestmark = pytest.mark.skipif(not emulation.KERNELS.is_dir(), reason="the sources are not here, only the tests")


def sources() -> list[Path]:
    return [*CHECKS.glob("*.cpp"), *CHECKS.glob("*.cu")]


@pytest.fixture(scope="module")
def program() -> Path:
    return emulation.build("checks", sources())


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return emulation.build("checks-sanitized", sources(), sanitize=True)


def run(program: Path, *names: str, data: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FILM_EMULATOR")} | environment
    environment.pop("LD_PRELOAD", None)
    return subprocess.run([program, *names], input=data, capture_output=True, timeout=60, env=environment)


@pytest.mark.parametrize("name", PLAIN)
def test_check(program, name):
    done = run(program, name)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_checks_are_clean_under_the_sanitizers(sanitized):
    done = run(sanitized, *PLAIN)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize("name", BEYOND)
def test_access_out_of_bounds_is_stopped(sanitized, name):
    done = run(sanitized, name)
    assert done.returncode != 0
    expected = rb"misaligned address|out of bounds" if "alignment" in name or "local" in name else rb"buffer-overflow"
    assert re.search(expected, done.stderr), done.stderr.decode()
    assert b"bounds.cu" in done.stderr or b"copies.cpp" in done.stderr


def test_conversions_are_those_of_torch(program):
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (100_000,), generator=generator).to(torch.int32).view(torch.float32)
    near_one = torch.randn(50_000, generator=generator)
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    ties = halves.view(torch.int32) + torch.randint(-1, 2, halves.shape, generator=generator) * 2**12
    values = torch.cat([anything, near_one, near_one * 1e-5, near_one * 2e4, halves, ties.int().view(torch.float32)])
    done = run(program, "convert", data=values.numpy().tobytes())
    f16, bf16, tf32 = torch.frombuffer(bytearray(done.stdout), dtype=torch.int32).view(-1, 3).unbind(1)
    f16, bf16 = f16.to(torch.int16).view(torch.float16), bf16.to(torch.int16).view(torch.bfloat16)
    assert torch.equal(f16.nan_to_num(7), values.half().nan_to_num(7))
    assert torch.equal(bf16.nan_to_num(7), values.bfloat16().nan_to_num(7))
    # To the nearest number with 10 bits after the first, halves away from zero.
    finite = values.isfinite()
    bits = values[finite].view(torch.int32).long()
    assert torch.equal(tf32[finite].long(), (bits + 0x1000 & ~0x1FFF).int().long())
    assert torch.equal(tf32.view(torch.float32)[values.isinf()], values[values.isinf()])
    assert tf32.view(torch.float32)[values.isnan()].isnan().all()


def test_seed_from_the_environment(program):
    for seed in ("0", "7"):
        assert f"(seed {seed})".encode() in run(program, "launch_limits", FILM_EMULATOR_SEED=seed).stderr


def test_bank_conflicts_are_reported_by_line(program):
    report = run(program, "bank_report").stderr.decode()
    assert re.search(r"banks\.cu:\d+: ldmatrix, 256 wavefronts, 224 of them bank conflicts", report), report
    assert re.search(r"banks\.cu:\d+: cp\.async, 32 wavefronts, 0 of them bank conflicts", report), report
    at_exit = run(program, "product_f16", FILM_EMULATOR_REPORT="1").stderr.decode()
    assert re.search(r"matrices\.cu:\d+: ldmatrix, \d+ wavefronts", at_exit), at_exit


def test_library_in_python():
    library = ctypes.CDLL(str(emulation.build("checks", sources(), shared=True)))
    values, out = torch.arange(256.0), torch.empty(2)
    expected = torch.tensor([8128.0, 24512.0])
    results = {True: [], False: []}
    for right, found in results.items():
        for seed in range(5):
            library.film_emulator_set_seed(ctypes.c_uint64(seed))
            pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (values, out)]
            assert library.film_check_sums(*pointers, right) == 0
            found.append(torch.equal(out, expected))
    assert results[True] == [True] * 5
    assert not all(results[False])


# ---- the real headers ----

ARCHITECTURES = ("80", "90", "120")
INSTRUCTIONS = (
    "LDGSTS.E.BYPASS.128",
    "LDGSTS.E ",
    "LDGDEPBAR",
    "DEPBAR",
    "LDSM.16.M88.4",
    "LDSM.16.M88.2",
    "LDSM.16.MT88.4",
    "LDSM.16.MT88.2",
    "HMMA.16816.F32 ",
    "HMMA.16816.F32.BF16",
    "HMMA.1688.F32.TF32",
    "LDS.128",
    "STS.128",
)


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory) -> dict[str, str]:
    compiled = tmp_path_factory.mktemp("nvcc") / "everything.o"
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    flags = ["-std=c++17", "-Werror", "all-warnings", "--threads", "2", f"-I{emulation.KERNELS}"]
    emulation.run([emulation.cuda_tool("nvcc"), *flags, *targets, "-c", CHECKS / "everything.cu", "-o", compiled])
    dump = subprocess.run(
        [emulation.cuda_tool("cuobjdump"), "--dump-sass", compiled], capture_output=True, text=True, check=True
    )
    _, *parts = re.split(r"code for sm_(\d+)", dump.stdout)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_instructions_are_in_the_machine_code(machine_code, arch):
    code = machine_code[arch]
    assert [i for i in INSTRUCTIONS if i not in code] == []
    assert not re.search(r"\b(LDL|STL)\b", code), "local memory"
