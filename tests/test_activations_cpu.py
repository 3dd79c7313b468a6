"""What the CPU kernels compute activations with, csrc/cpu/activate.h, for each instruction set of this machine.

Values and slopes are held to formulas in extended precision: their errors are at most twice those of plain PyTorch.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from film_kernels.activations import ACTIVATIONS
from tests.helpers import emulation

SOURCE = Path(__file__).parent / "helpers" / "activations.cpp"
SETUP = emulation.ROOT / "setup.py"
SUPPORTED = {
    "baseline": lambda: True,
    "avx2": torch.cpu._is_avx2_supported,
    "avx512": torch.cpu._is_avx512_supported,
}
SMOOTH = tuple(name for name, row in ACTIVATIONS.items() if not row.one_bit)
LINEAR = tuple(name for name, row in ACTIVATIONS.items() if row.one_bit)
KINDS = ("value", "slope")
DTYPES = (torch.float32, torch.float64)
LOWER_SLOPE = 0.3
COUNT = 2**16  # numbers in a sample: whole vectors of every instruction set
Real = np.longdouble
PI = Real("3.14159265358979323846264338327950288")

pytestmark = [
    pytest.mark.skipif(not SETUP.exists(), reason="the sources are not here, only the tests"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module", params=SUPPORTED)
def program(request, tmp_path_factory) -> Path:
    """The program of `SOURCE` for one instruction set, compiled with the flags that setup.py has for it."""
    isa = request.param
    sets = dict(re.findall(r'ISA_FLAGS\["(\w+)"\] = (\[.*\])', SETUP.read_text()))
    assert {"baseline", *sets} == set(SUPPORTED)
    if not SUPPORTED[isa]():
        pytest.skip(f"no {isa} here")
    flags = ["-std=c++17", "-O3", "-ffp-contract=fast", "-Wno-psabi", *ast.literal_eval(sets.get(isa, "[]"))]
    target = tmp_path_factory.mktemp(isa) / "activations"
    emulation.run(["g++", *flags, f"-DFILM_ISA={isa}", SOURCE, "-o", target])
    return target


def run(program: Path, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
    """For each activation four rows (value, slope, and both as both() has them), and one for "exp"."""
    command = [program, str(numbers.dtype).removeprefix("torch."), str(LOWER_SLOPE)]
    done = subprocess.run(command, input=numbers.numpy().tobytes(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    rows = torch.frombuffer(bytearray(done.stdout), dtype=numbers.dtype).view(-1, len(numbers))
    assert len(rows) == 4 * len(ACTIVATIONS) + 1
    return {name: rows[4 * i : 4 * i + 4] for i, name in enumerate(ACTIVATIONS)} | {"exp": rows[-1]}


def plain(name: str, numbers: torch.Tensor) -> torch.Tensor:
    """PyTorch's value and slope, as two rows."""
    v = numbers.clone().requires_grad_()
    value = ACTIVATIONS[name].apply(v, LOWER_SLOPE)
    (slope,) = torch.autograd.grad(value, v, torch.ones_like(value))
    return torch.stack([value.detach(), slope])


def normal_distribution(v):
    """Phi(v): 1/2 + phi(v) (v + v^3 / 3 + v^5 / 15 + ...), whose terms have one sign; erfc where they would cancel."""
    x = np.clip(v, -2, 9)
    term = total = x
    for i in range(3, 300, 2):
        term = term * x * x / i
        total = total + term
    tail = torch.special.erfc(torch.from_numpy(v.astype(np.float64)) * -(0.5**0.5)).numpy() / 2
    return np.where(v > -2, 0.5 + np.exp(-x * x / 2) / np.sqrt(2 * PI) * total, tail)


def exact(name: str, numbers: torch.Tensor):
    """Value and slope in extended precision, as two rows; of |v| <= 100."""
    v = numbers.numpy().astype(Real)

    def logistic(u):
        t = np.exp(-np.abs(u))
        return np.where(u < 0, t, 1) / (1 + t), t / (1 + t) ** 2

    if name == "sigmoid":
        return np.stack(logistic(v))
    if name == "silu":
        s, ds = logistic(v)
        return np.stack([v * s, s + v * ds])
    if name == "tanh":
        return np.stack([np.tanh(v), 4 * logistic(2 * v)[1]])
    if name == "gelu":
        phi = normal_distribution(v)
        return np.stack([v * phi, phi + v * np.exp(-v * v / 2) / np.sqrt(2 * PI)])
    if name == "gelu_tanh":
        a = np.sqrt(8 / PI)
        b = a * Real("0.044715")
        s, ds = logistic(v * (a + b * v * v))
        return np.stack([v * s, s + v * ds * (a + 3 * b * v * v)])
    if name == "elu":
        return np.stack([np.where(v <= 0, np.expm1(v), v), np.where(v <= 0, np.exp(v), 1)])
    assert name == "mish"
    e = np.exp(v)
    n = e * (e + 2)
    return np.stack([v * n / (n + 2), n / (n + 2) + v * 4 * e * (e + 1) / (n + 2) ** 2])


def sample(low: float, high: float, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (low + (high - low) * torch.rand(COUNT, generator=generator, dtype=torch.float64)).to(dtype)


def tiny(dtype: torch.dtype) -> torch.Tensor:
    """Of every size from 1e-30 to 1, and of both signs."""
    return 10 ** sample(-30, 0, dtype) * sample(-1, 1, dtype).sign()


def errors(rows, reference):
    return np.abs(np.stack([row.numpy().astype(Real) for row in rows]) - reference)


@functools.lru_cache(maxsize=4)  # the samples of one test, which are large
def results(program: Path, sampled, *arguments) -> dict[str, torch.Tensor]:
    return run(program, sampled(*arguments))


@functools.cache
def references(name: str, sampled, *arguments):
    """Value and slope of a sample in extended precision, and the errors of PyTorch's."""
    v = sampled(*arguments)
    reference = exact(name, v)
    return reference, errors(plain(name, v), reference)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_absolute_error_is_at_most_twice_that_of_pytorch(program, dtype, name):
    for low, high in ((-1, 1), (-12, 12), (-100, 100)):
        reference, theirs = references(name, sample, low, high, dtype)
        ours = errors(results(program, sample, low, high, dtype)[name][:2], reference)
        for kind, mine, limit in zip(KINDS, ours.max(1), 2 * theirs.max(1), strict=True):
            assert mine <= limit, f"{kind} in ({low}, {high}): {mine:.3g}, twice PyTorch's is {limit:.3g}"


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_relative_error_is_at_most_twice_that_of_pytorch(program, dtype, name):
    tails = [] if name in ("gelu", "gelu_tanh") else [(sample, -80, 12, dtype)]
    for arguments in [(tiny, dtype), *tails]:
        reference, theirs = references(name, *arguments)
        ours, size = errors(results(program, *arguments)[name][:2], reference), np.abs(reference[0])
        assert (ours[0] / size).max() <= 2 * (theirs[0] / size).max(), arguments


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_keeps_digits_in_its_tail(program, name):
    """PyTorch's 1 + erf and 1 + tanh lose them all; here only the number that exp gets is rounded, a few times."""
    v = sample(-9, 0, torch.float32)
    x = v.numpy().astype(Real)
    exponent = x * x / 2 if name == "gelu" else -x * np.sqrt(8 / PI) * (1 + Real("0.044715") * x * x)
    reference = exact(name, v)[0]
    error = np.abs(run(program, v)[name][0].numpy().astype(Real) - reference)
    assert (error <= np.finfo(np.float32).eps * (4 + 2 * exponent) * np.abs(reference)).all()


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_slope_at_once_are_those_one_by_one(program, dtype, name):
    rows, eps = results(program, sample, -12, 12, dtype)[name], torch.finfo(dtype).eps
    torch.testing.assert_close(rows[2:], rows[:2], rtol=4 * eps, atol=4 * eps)


def special(dtype: torch.dtype) -> torch.Tensor:
    """Zeros, infinities, NaN, denormals, huge numbers, and those near which an exponential over- or underflows."""
    info = torch.finfo(dtype)
    ends = [float(np.log(info.max)), float(np.log(info.tiny))]
    sizes = [0, 1e-10, info.tiny, info.tiny / 8, info.smallest_normal * info.eps, 1, 20, 50, 100, 1000, 1e4, 1e10, 1e20]
    sizes += [1e30, 1e38, *(abs(end) * near for end in ends for near in (1 - 1e-3, 1 - 1e-6, 1 + 1e-6, 1 + 1e-3, 0.5))]
    numbers = torch.tensor([*sizes, float("inf"), float("nan")], dtype=torch.float64).to(dtype)
    numbers = torch.cat([numbers, -numbers])
    return torch.cat([numbers, numbers.new_ones(-len(numbers) % 16)])


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(program, dtype, name):
    """What PyTorch gives in float64; in float32 it has NaN for gelu(inf) and for the slope of gelu_tanh at 1e30."""
    v = special(dtype)
    expected, info = plain(name, v.double()), torch.finfo(dtype)
    rows = run(program, v)[name]
    for row, wanted in zip(rows, (*expected, *expected), strict=True):
        # PyTorch's own gelu and tanh lose digits in the tails, as 1 + erf does.
        torch.testing.assert_close(row.double(), wanted, rtol=8 * info.eps, atol=8 * info.eps, equal_nan=True)
    small = v.abs() < 1e-5
    torch.testing.assert_close(
        rows[0][small].double(), expected[0][small], rtol=4 * info.eps, atol=2 * info.tiny * info.eps
    )
    zero = v == 0
    assert torch.equal(rows[0][zero].signbit(), expected[0][zero].signbit())


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_finite_number_gives_nan(program, dtype, name):
    largest = torch.finfo(dtype).max
    v = torch.logspace(-30, float(np.log10(largest)) - 1e-6, 512, dtype=torch.float64).to(dtype)
    v = torch.cat([v, -v, v.new_full((16,), largest), v.new_full((16,), -largest)])
    rows = run(program, v)[name]
    assert rows.isfinite().all()
    far = v.abs() > 1e4
    value = torch.where(v > 0, 1 if name in ("tanh", "sigmoid") else v, -1 if name in ("tanh", "elu") else 0)
    slope = torch.where(v > 0, 0 if name in ("tanh", "sigmoid") else 1, 0).to(dtype)
    assert torch.equal(rows[0][far], value[far]) and torch.equal(rows[1][far], slope[far])


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_ones_are_those_of_pytorch(program, dtype, name):
    v = torch.cat([special(dtype), sample(-3, 3, dtype)])
    expected = plain(name, v)
    # NaN is on the upper branch, whose slope is 1; PyTorch takes the lower one for leaky_relu.
    expected[1][v.isnan()] = 1
    for row, wanted in zip(run(program, v)[name], (*expected, *expected), strict=True):
        torch.testing.assert_close(row, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponential(program, dtype):
    info = torch.finfo(dtype)
    lowest, highest = float(np.log(info.tiny)), float(np.log(info.max))
    near = [highest + 1e-2 * sample(-1, 1, torch.float64), lowest + 1e-2 * sample(-1, 1, torch.float64)]
    v = torch.cat([sample(lowest * 1.2, highest * 1.2, dtype), sample(-1, 1, dtype), *(x.to(dtype) for x in near)])
    ours = run(program, v)["exp"].numpy()
    reference = np.exp(v.numpy().astype(Real))
    assert (np.isinf(ours) == (reference > Real(info.max))).all()
    normal = (reference >= Real(info.tiny)) & (reference <= Real(info.max))
    assert (np.abs(ours[normal] - reference[normal]) <= 1.25 * info.eps * reference[normal]).all()
    below = reference < Real(info.tiny)
    assert ((ours[below] == 0) | (np.abs(ours[below] - reference[below]) <= info.eps * info.tiny)).all()


def test_exponential_of_infinities_and_every_nan(program):
    """A NaN's other bits reach the exponent where 2^n is put together from bits."""
    bits = torch.tensor(
        [0x7F800001, 0x7FC00001, 0x7FFFFFFF, -1, -0x3FFFFF, -0x7FFFFF] + [0x7FC00000 + (1 << i) for i in range(22)]
    )
    nans = bits.to(torch.int32).view(torch.float32)
    assert nans.isnan().all()
    v = torch.cat([nans, torch.tensor([float("inf"), -float("inf"), 0.0, -0.0])])
    results = run(program, torch.cat([v, v.new_zeros(-len(v) % 16)]))
    y = results["exp"][: len(v)]
    assert y[: len(nans)].isnan().all() and y[len(nans) :].tolist() == [float("inf"), 0, 1, 1]
    assert all(results[name][:, : len(nans)].isnan().all() for name in SMOOTH)
