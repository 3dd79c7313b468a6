"""Which backend serves a call, and what a user is told."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import film_kernels
from film_kernels import arguments, backends
from film_kernels.backends.cpu import _USES, _is_small_sample
from film_kernels.conversion.gain import convolution_alone
from tests.helpers.processor import has_pairs, has_tiles, multiplies_one_vector

X, W = torch.randn(2, 4, 6, 6), torch.randn(8, 4, 3, 3)


@pytest.fixture
def served(monkeypatch):
    """The names of the backends that served calls, in order."""
    names = []
    for name, backend in backends.BACKENDS.items():
        for kernels in backend.kernels if name != "reference" else ():
            original = kernels.forward
            monkeypatch.setattr(
                kernels, "forward", lambda *args, name=name, original=original: (names.append(name), original(*args))[1]
            )
            monkeypatch.setattr(kernels, "prepared", lambda problem: None)  # else calls would not come by "forward"
    backends.forget_choices()
    original = film_kernels.reference.forward
    monkeypatch.setattr(
        film_kernels.reference, "forward", lambda *args: (names.append("reference"), original(*args))[1]
    )
    yield names
    backends.forget_choices()


def test_order_of_pins(served, monkeypatch):
    film_kernels.conv_film(X, W)
    with film_kernels.use_backend("vendor"):
        film_kernels.conv_film(X, W)
        monkeypatch.setenv("FILM_KERNELS_BACKEND", "reference")
        film_kernels.conv_film(X, W)
        film_kernels.conv_film(X, W, backend="cpu")
    monkeypatch.delenv("FILM_KERNELS_BACKEND")
    film_kernels.conv_film(X, W)
    assert served == ["cpu", "vendor", "reference", "cpu", "cpu"]


def test_use_backend_is_undone_by_an_error_and_nests(served):
    with pytest.raises(ZeroDivisionError), film_kernels.use_backend("reference"):
        raise ZeroDivisionError
    with film_kernels.use_backend("vendor"):
        with film_kernels.use_backend("cpu"):
            film_kernels.conv_film(X, W)
        film_kernels.conv_film(X, W)
    film_kernels.conv_film(X, W)
    assert served == ["cpu", "vendor", "cpu"]


def test_a_pin_belongs_to_its_coroutine():
    """Blocks of coroutines in one thread begin and end in any order."""
    seen = []

    async def call(name, before, inside):
        await asyncio.sleep(before)
        with film_kernels.use_backend(name):
            await asyncio.sleep(inside)
            seen.append((name, backends.pinned(None)))
            await asyncio.to_thread(lambda: seen.append((name, backends.pinned(None))))
        seen.append((None, backends.pinned(None)))

    async def all_of_them():
        await asyncio.gather(call("vendor", 0, 0.05), call("reference", 0.02, 0.1), call("cpu", 0.03, 0.01))

    asyncio.run(all_of_them())
    assert len(seen) == 9 and all(wanted == found for wanted, found in seen)
    assert backends.pinned(None) is None


def test_blocks_that_end_in_another_order_leave_nothing_behind():
    def generator(name):
        with film_kernels.use_backend(name):
            yield

    first, second = generator("vendor"), generator("cpu")
    next(first), next(second)
    first.close()
    assert backends.pinned(None) == "cpu"
    second.close()
    assert backends.pinned(None) is None
    third = generator("vendor")
    contextvars.copy_context().run(next, third)
    third.close()  # in another context than it began in
    assert backends.pinned(None) is None


def test_a_pin_is_of_its_thread(served):
    with film_kernels.use_backend("vendor"):
        thread = threading.Thread(target=film_kernels.conv_film, args=(X, W))
        thread.start()
        thread.join()
        film_kernels.conv_film(X, W)
    assert served == ["cpu", "vendor"]


def test_compiled_calls_follow_the_pin(served):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: film_kernels.conv_film(x, W), fullgraph=True, backend="eager")

    def inside(x):
        with film_kernels.use_backend("vendor"):
            return film_kernels.conv_film(x, W)

    compiled(X)
    with film_kernels.use_backend("vendor"):
        compiled(X)
    compiled(X)
    torch.compile(inside, fullgraph=True, backend="eager")(X)
    compiled(X)
    assert served == ["cpu", "vendor", "cpu", "vendor", "cpu"]


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match="name must be one of"), film_kernels.use_backend("gpu"):
        pass
    monkeypatch.setenv("FILM_KERNELS_BACKEND", "fast")
    with pytest.raises(ValueError, match="FILM_KERNELS_BACKEND must be one of 'cpu'"):
        film_kernels.conv_film(X, W)


def test_a_pinned_backend_that_cannot_serve_says_why():
    with pytest.raises(ValueError, match="backend 'cpu' cannot serve this call: it serves 1d and 2d"):
        film_kernels.conv_film(torch.randn(1, 2, 4, 4, 4), torch.randn(3, 2, 3, 3, 3), backend="cpu")
    with pytest.raises(ValueError, match="not on meta"):
        film_kernels.conv_film(X.to("meta"), W.to("meta"), backend="cpu")


def test_the_automatic_choice_goes_on_to_who_can(served):
    film_kernels.conv_film(torch.randn(1, 2, 4, 4, 4), torch.randn(3, 2, 3, 3, 3))  # 3d
    film_kernels.conv_film(X, torch.randn(2, 2, 3, 3), groups=2)  # narrow groups: slow on the fused kernels
    film_kernels.conv_film(X[:, :, :2], W)  # no output rows: the library refuses, the kernels do not
    assert served == ["vendor", "vendor", "cpu"]


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def fewest_positions(
    weight, dtype=torch.float32, *, stride=1, dilation=1, groups=1, channels_last=False, use=0, small=False
):
    """What the CPU library says: from how many output positions on it is faster than PyTorch's own convolution. `use`
    is a place in `backends.cpu._USES`, and `small` whether PyTorch has a way of its own for one small sample."""
    axes = len(weight) - 2
    geometry = ([stride] * axes, [dilation] * axes, [weight[2] // 2] * axes)
    return torch.ops.film_kernels_cpu.fewest_positions(
        list(weight), dtype, *geometry, groups, channels_last, use, small
    )


def test_the_cpu_kernels_say_from_where_on_they_are_the_faster_ones():
    never = 2**63 - 1
    assert fewest_positions((8, 8, 3, 3)) == fewest_positions((64, 64, 1, 1)) == fewest_positions((64, 64, 3)) == 0
    # Filtered by Winograd: what is done to the weight takes so many positions to pay, more where it leaves L2, and
    # fewer where the library multiplies floats no faster. By tiles the processor multiplies so much faster that one
    # tile of positions is enough.
    least = [16, 16, 16] if has_tiles() else [32, 32, 64] if multiplies_one_vector() else [256, 256, 1024]
    assert [fewest_positions((n, n, 3, 3)) for n in (64, 128, 256)] == least
    large = [512, 704] if multiplies_one_vector() and not has_tiles() else [0, 0]
    assert [fewest_positions(weight) for weight in ((64, 64, 5, 5), (256, 256, 7, 7))] == large
    assert [fewest_positions((12, 1, 3, 3), groups=12 // width) for width in (2, 3, 4, 6)] == [never, never, 0, 0]
    # Depthwise layers have kernels of their own, for so many taps and strides and from so many channels on.
    for dtype in DTYPES:
        for options in ({}, {"stride": 2}, {"channels_last": True}):
            assert [fewest_positions((c, 1, 7, 7), dtype, groups=c, **options) for c in (3, 4)] == [never, 0]
        assert fewest_positions((64, 1, 5), dtype, groups=64) == 0
        for weight, options in (((64, 1, 9, 9), {}), ((64, 1, 3, 3), {"dilation": 2}), ((64, 1, 3, 3), {"stride": 3})):
            assert fewest_positions(weight, dtype, groups=64, **options) == never
    assert fewest_positions((12, 2, 3, 3), groups=2, channels_last=True) == never
    for options in ({}, {"stride": 2}, {"dilation": 2}, {"groups": 2}):
        assert fewest_positions((64, 64, 3, 3), torch.float16, **options) == 0
    assert fewest_positions((64, 64, 1, 1), torch.bfloat16) == 0
    assert fewest_positions((64, 64, 3), dilation=4000) == never  # blocks would read mostly what lies between the taps


def test_the_cpu_kernels_say_it_of_a_convolution_alone():
    never, alone, packed = 2**63 - 1, *map(_USES.index, ("alone", "alone packed"))
    for use in (alone, packed):
        for weight, options in (
            ((64, 64, 1, 1), {}), ((64, 64, 3, 3), {"stride": 2}), ((64, 64, 3), {}), ((1, 3, 3, 3), {}),
            ((64, 3, 1, 1), {}), ((64, 64, 3, 3), {"channels_last": True}), ((8, 4, 3, 3), {"groups": 2}),
        ):  # fmt: skip
            assert fewest_positions(weight, use=use, **options) == 32
        for weight, options in (
            ((3, 64, 3, 3), {"stride": 2}), ((64, 3, 1, 1), {"channels_last": True}), ((8, 2, 3, 3), {"groups": 4}),
            ((64, 64, 3), {"dilation": 4000}),
        ):  # fmt: skip
            assert fewest_positions(weight, use=use, **options) == never
        assert fewest_positions((64, 64, 3, 3), torch.float64, use=use) == never
        # Depthwise: with nothing behind it, oneDNN's are as fast, where oneDNN has the dtype.
        alone_from = [fewest_positions((64, 1, 3, 3), dtype, groups=64, use=use) for dtype in DTYPES]
        assert alone_from == [never, 0, never, 0]
    # A long sum takes the transforms of Winograd's algorithm, which take positions, or tiles.
    wide = [fewest_positions((512, 512, 3, 3), use=use) for use in (alone, packed)]
    assert wide == ([32, 32] if has_tiles() else [64 if multiplies_one_vector() else 1024, 32])
    assert fewest_positions((128, 128, 5, 5), use=alone) == (32 if has_tiles() else never)


def test_one_small_sample_has_to_have_many_products():
    alone, packed = map(_USES.index, ("alone", "alone packed"))
    for use, least in ((alone, 2**20 if has_tiles() else 2**24), (packed, 2**19)):
        assert fewest_positions((64, 64, 3, 3), use=use, small=True) == max(-(-least // (64 * 64 * 9)), 32)
    assert fewest_positions((64, 64, 1, 1), use=alone, small=True) == 1024


@pytest.mark.parametrize(
    ("input", "weight", "options", "small"),
    [
        ((1, 64, 16, 16), (64, 64, 3, 3), {}, True), ((2, 64, 16, 16), (64, 64, 3, 3), {}, False),
        ((1, 64, 18, 18), (64, 64, 3, 3), {}, False), ((1, 64, 16, 16), (64, 64, 5, 5), {}, False),
        ((1, 64, 256), (64, 64, 5), {}, True), ((1, 64, 16, 16), (64, 64, 3, 3), {"dilation": 2}, False),
        ((1, 64, 16, 16), (64, 16, 3, 3), {"groups": 4}, False), ((1, 64, 16, 16), (64, 64, 3, 3), {"stride": 2}, True),
    ],
)  # fmt: skip
def test_a_small_sample_is_what_pytorch_keeps_from_onednn(input, weight, options, small):
    x, w = torch.randn(input), torch.randn(weight)
    convolution = F.conv2d if len(input) == 4 else F.conv1d
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        convolution(x, w, **options)
    names = {event.name for event in profile.events()}
    asked = (options.get("stride", 1), 0, options.get("dilation", 1), options.get("groups", 1))
    problem = convolution_alone(x, w, torch.float32, asked)
    assert _is_small_sample(problem) is small
    assert ("aten::_slow_conv2d_forward" in names) is small


def test_what_the_processor_does_with_bfloat16_decides_on_wide_sums():
    """In tiles (AMX) it is faster than all but what Winograd's filtering makes a quarter of, in NCHW and of few
    channels; in pairs, on processors of others than Intel, than all but what filtering makes a quarter of, and sums of
    fewer products where the kernels here multiply pairs too."""
    tiles = torch.cpu._is_amx_tile_supported()
    pairs = torch.cpu._is_avx512_bf16_supported() and multiplies_one_vector() and not tiles
    never, from_64 = (2**63 - 1) * (tiles or pairs), 64 * (tiles or pairs)
    for options in ({"stride": 2}, {"dilation": 2}):
        assert fewest_positions((64, 64, 3, 3), torch.bfloat16, **options) == never
        assert fewest_positions((64, 48, 3, 3), torch.bfloat16, **options) == (0 if has_pairs() else never)
    for products in (512, 1536):
        assert fewest_positions((64, products, 1, 1), torch.bfloat16) == (
            0 if has_pairs() and products < 576 else never
        )
    for taps in (7, 9):  # a row: 896 and 1152 products
        assert fewest_positions((128, 128, taps), torch.bfloat16) == (0 if has_pairs() and taps < 8 else never)
    assert fewest_positions((64, 32, 3, 3), torch.bfloat16) == (0 if has_pairs() else from_64)
    assert fewest_positions((64, 64, 3, 3), torch.bfloat16) == from_64 or tiles
    assert fewest_positions((64, 64, 3, 3), torch.bfloat16, channels_last=True) == (from_64 if pairs else never)


def test_the_question_which_is_faster_checks_what_it_is_given():
    for weight, options in (
        ((64,), {}),
        ((64, 64, 3, 3, 3), {}),
        ((64, 0, 3, 3), {}),
        ((64, -(2**63), 3, 3), {}),
        ((64, 2**62, 3, 3), {}),
        ((64, 2**40, 2**40, 3), {}),
        ((64, 64, 3, 3), {"groups": 0}),
        ((64, 64, 3, 3), {"groups": 7}),
        ((64, 64, 3, 3), {"groups": 2**62}),
        ((64, 64, 3, 3), {"dtype": torch.int32}),
        ((64, 64, 3, 3), {"use": 4}),
        ((64, 64, 3, 3), {"use": -1}),
    ):
        with pytest.raises((RuntimeError, IndexError), match=r"film_kernels: (weight|groups|use)|index out of range"):
            fewest_positions(weight, **options)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_choice_by_sizes_holds_for_symbolic_ones(batch, monkeypatch, tmp_path):
    """With 49 positions a sample, Winograd's filtering serves from two samples on."""
    torch._dynamo.reset()
    # What a process with other kernels has compiled, and Inductor has kept, is made for another choice.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    w = torch.randn(16, 32, 3, 3).bfloat16().requires_grad_()
    call = torch.compile(lambda x: film_kernels.conv_film(x, w, padding=1), dynamic=True, fullgraph=True)
    for n in (batch, 2, 5, 1):
        input = torch.randn(n, 32, 7, 7).bfloat16()
        call(input).sum().backward()
        found, w.grad = w.grad, None
        film_kernels.conv_film(input, w, padding=1).sum().backward()
        torch.testing.assert_close(found, w.grad, rtol=0.1, atol=0.5)
        w.grad = None


def test_every_backend_says_none_or_why():
    state = film_kernels.available_backends()
    assert list(state)[-2:] == ["vendor", "reference"] and state["vendor"] is None and state["reference"] is None
    problem = arguments.prepare((X, W, None, None, None), (1, 0, 1, 1, "relu", 0.01, "post", 0.0, "fast"))[0]
    for name, backend in backends.BACKENDS.items():
        if state[name] is None:
            assert backend.why_not(problem) is None
        else:
            assert isinstance(state[name], str) and state[name]


def test_command_prints_versions_and_backends():
    text = subprocess.run([sys.executable, "-m", "film_kernels"], capture_output=True, text=True, check=True).stdout
    assert f"film_kernels {film_kernels.__version__}, torch {torch.__version__}" in text
    assert "uses " in text and "cpu        yes" in text


def _without_library(tmp_path, spoil):
    """Run the package from a copy whose compiled library is spoilt."""
    source = Path(film_kernels.__file__).parent
    copy = tmp_path / "film_kernels"
    copy.mkdir()
    for path in source.rglob("*.py"):
        (copy / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(source)).write_bytes(path.read_bytes())
    spoil(copy)
    code = (
        "import torch, film_kernels, runpy; x, w = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)\n"
        "y = film_kernels.conv_film(x, w.requires_grad_()); y.sum().backward()\n"
        "assert torch.allclose(y, torch.relu(torch.nn.functional.conv2d(x, w)))\n"
        "runpy.run_module('film_kernels', run_name='__main__')"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)


def test_works_without_the_compiled_library(tmp_path):
    done = _without_library(tmp_path, lambda copy: None)
    assert done.returncode == 0, done.stderr
    assert "was not built: pip install --no-build-isolation" in done.stdout and "vendor     yes" in done.stdout


def test_works_with_a_library_that_does_not_load(tmp_path):
    done = _without_library(tmp_path, lambda copy: (copy / "_cpu.abi3.so").write_bytes(b"not a library"))
    assert done.returncode == 0, done.stderr
    assert "does not load" in done.stdout and "vendor     yes" in done.stdout
