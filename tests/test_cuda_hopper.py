"""The convolution by Hopper's own instructions without a Hopper: what it serves and in which tiles, what a user is
told, and, where CUTLASS's headers are, its kernels' host side and machine code."""

from __future__ import annotations

import importlib.util
import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import film_kernels
from film_kernels.backends import cuda_hopper
from tests.helpers import emulation
from tests.helpers.cases import EMULATED, Case, problem_of, tensors_of

pytestmark = pytest.mark.skipif(not EMULATED, reason="the sources are not here, only the tests")

SMALL = ((2, 16, 12, 10), (24, 16, 3, 3))
SERVED = (
    Case("padded", *SMALL, padding=1),
    Case("same_even_kernel", (2, 16, 12, 10), (8, 16, 4, 2), padding="same"),
    Case("strided", (1, 8, 33, 40), (8, 8, 3, 3), stride=(8, 2), padding=(1, 0), dilation=(3, 1)),
    Case("pointwise", (3, 64, 5, 5), (64, 64, 1, 1), stride=2),
    Case("far", (1, 8, 256, 9), (8, 8, 2, 1), padding=(127, 0), dilation=(254, 1)),
)
REFUSED = (
    (Case("channels", (1, 12, 8, 8), (8, 12, 3, 3)), torch.bfloat16, "multiples of 8"),
    (Case("outputs", (1, 8, 8, 8), (12, 8, 3, 3)), torch.bfloat16, "multiples of 8"),
    (Case("dtype", *SMALL), torch.float32, "bfloat16 and float16"),
    (Case("groups", (1, 16, 8, 8), (16, 8, 3, 3), groups=2), torch.float16, "one group"),
    (Case("stride", *SMALL, stride=9), torch.float16, "strides of at most 8"),
    (Case("reach", (1, 8, 9, 300), (8, 8, 1, 2), dilation=(1, 255)), torch.float16, "at most 255 positions"),
    (Case("padding", (1, 8, 9, 9), (8, 8, 3, 3), padding=129), torch.float16, "padding of at most 128"),
    (Case("corner", (1, 8, 300, 9), (8, 8, 2, 1), dilation=(129, 1)), torch.float16, "128 positions further"),
    (Case("one_dimension", (1, 8, 50), (8, 8, 3)), torch.bfloat16, "2d"),
)  # fmt: skip


def reason(case: Case, dtype: torch.dtype = torch.bfloat16, channels_last: bool = True) -> str | None:
    problem = problem_of(case, tensors_of(case, dtype, channels_last=channels_last))
    return cuda_hopper.why_not_sizes(problem._replace(channels_last=channels_last))


def test_what_it_serves(emulator):
    assert [reason(case, dtype) for case in SERVED for dtype in (torch.bfloat16, torch.float16)] == [None] * 10
    for case, dtype, words in REFUSED:
        assert words in (reason(case, dtype) or ""), case
    assert "channels_last only" in reason(SERVED[0], channels_last=False)


@pytest.fixture
def asked_for(monkeypatch):
    monkeypatch.setenv("FILM_KERNELS_CUDA_FORWARD", "hopper")
    film_kernels.backends.forget_choices()
    yield
    film_kernels.backends.forget_choices()


def test_a_user_is_told_why_it_does_not_serve(emulator, asked_for, monkeypatch):
    tensors = tensors_of(SERVED[0], torch.bfloat16, channels_last=True)
    with pytest.raises(ValueError, match=r"FILM_KERNELS_CUDA_FORWARD=hopper: it was built without CUTLASS's headers"):
        film_kernels.conv_film(*tensors, *SERVED[0].geometry, backend="cuda")
    film_kernels.conv_film(*tensors, *SERVED[0].geometry)  # by another backend
    monkeypatch.setenv("FILM_KERNELS_CUDA_FORWARD", "ampere")
    film_kernels.backends.forget_choices()
    for backend in ("cuda", None):
        with pytest.raises(ValueError, match="FILM_KERNELS_CUDA_FORWARD must be 'hopper' or nothing, got 'ampere'"):
            film_kernels.conv_film(*tensors, *SERVED[0].geometry, backend=backend)


def test_tiles_fill_the_multiprocessors(emulator):
    """Large ones where all have work, small ones where positions or channels are few."""

    def tile(positions, channels, multiprocessors=132):
        return torch.ops.film_kernels_cuda.hopper_tile(positions, channels, multiprocessors)

    assert tile(132 * 128, 128) == tile(1 << 20, 512) == 0
    assert tile(1 << 20, 64) == 1
    assert tile(1 << 12, 64) == tile(14 * 14, 128) == tile(1, 8) == 2
    sizes = [(128, 128), (128, 64), (64, 64)]
    for positions, channels in itertools.product((1, 100, 5000, 25_088, 131_072), (8, 64, 72, 128, 200, 512)):
        rows, columns = sizes[tile(positions, channels)]
        blocks = -(-positions // rows) * -(-channels // columns)
        assert rows * columns == 64 * 64 or blocks > 66, "half of the multiprocessors would stand still"
    for wrong in ((0, 8, 1), (1, 0, 1), (1, 8, 0), (1 << 40, 1 << 40, 1)):
        with pytest.raises(RuntimeError, match="film_kernels: "):
            tile(*wrong)


def module(path: Path):
    """A module of csrc, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tested_{path.stem}", path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def flags() -> list[str]:
    """Those of nvcc for CUTLASS; without its headers the test is skipped."""
    headers = module(emulation.KERNELS / "hopper" / "cutlass_headers.py")
    if (folders := headers.folders()) is None:
        pytest.skip("CUTLASS's headers are needed (CUTLASS_HOME, or pip install --no-deps nvidia-cutlass)")
    return headers.flags(folders)


def drawn(count: int) -> list[Case]:
    """Convolutions around the limits of what is served."""
    generator = random.Random(0)
    pick = generator.choice
    cases = []
    while len(cases) < count:
        kernel = (pick((1, 2, 3, 5, 7)), pick((1, 3, 4, 11)))
        dilation = (pick((1, 2, 30, 64, 127, 128, 254, 255)), pick((1, 3, 12, 13, 64, 127)))
        padding = (pick((0, 1, 2, 64, 127, 128, 129)), pick((0, 1, 3, 128, 140)))
        case = Case(
            "drawn", (pick((1, 3)), pick((8, 16, 12)), generator.randint(1, 300), generator.randint(1, 300)),
            (pick((8, 24, 20)), 0, *kernel), (pick((1, 2, 8, 9)), pick((1, 3))), padding, dilation,
        )  # fmt: skip
        case = Case(*[*vars(case).values()][:2], (case.weight[0], case.input[1], *kernel), *case.geometry)
        sizes = zip(case.input[2:], kernel, padding, dilation, strict=True)
        if all(size + 2 * p > d * (k - 1) for size, k, p, d in sizes):
            cases.append(case)
    return cases


def test_what_cutlass_says(emulator, tmp_path):
    """It can do what is served, with descriptors that the driver takes, and the output has the shape that the front
    door gives it; strides are the driver's limit, which CUTLASS does not ask about. Four threads hold one byte."""
    program = tmp_path / "checks"
    source = Path(__file__).parent / "hopper_checks.cu"
    nvcc = emulation.cuda_tool("nvcc")
    emulation.run([nvcc, "-std=c++17", "-O1", *flags(), f"-I{emulation.KERNELS}", source, "-o", program])
    cases, lines, served = [*SERVED, *drawn(400)], [], []
    for case in cases:
        problem = problem_of(case, tensors_of(case, torch.bfloat16))
        axes = zip(
            problem.input_shape[2:], problem.weight_shape[2:], problem.stride, problem.dilation,
            problem.padding_before, problem.out_size, strict=True,
        )  # fmt: skip
        numbers = [problem.batch, problem.input_shape[1], problem.out_channels, *itertools.chain(*axes)]
        lines.append(" ".join(map(str, numbers)))
        served.append(cuda_hopper.why_not_sizes(problem._replace(channels_last=True)))
    said = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    tiles, answers = said.splitlines()[:3], said.splitlines()[3:]
    assert all("in bytes 1" in line and "workspace 0" in line for line in tiles), tiles
    assert len(answers) == len(cases)
    for case, answer, why_not in zip(cases, answers, served, strict=True):
        *can, wrong, n, k, height, width = map(int, answer.split())
        if why_not is None:
            assert (*can, wrong) == (1, 1, 1, 0), case
            problem = problem_of(case, tensors_of(case, torch.bfloat16))
            assert (n, k, height, width) == problem.out_shape, case
        else:
            assert can == [0, 0, 0] or "strides" in why_not, (case, why_not)
    assert 50 < served.count(None) < 350


def test_the_machine_code_multiplies_by_warpgroups_and_spills_nothing():
    flags()
    report = module(emulation.KERNELS / "report.py")
    rows = report.rows_of(emulation.KERNELS / "hopper" / "forward_bf16.cu", "90a")
    assert [row.kernel for row in rows] == [f"hopper::forward_kernel<__nv_bfloat16, {tile}>" for tile in range(3)]
    for row in rows:
        assert not row.is_bad and {"wgmma", "tma"} <= set(row.instructions) and 0 < row.step < 150, row
