"""Every kernel compiled ahead of time, for GPUs that are not here: it fits, does not spill, and uses matrix units."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton.backends.nvidia.compiler")
pytest.importorskip("triton.backends.amd.compiler")

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942", "gfx1100")
MATRIX = {
    "sm_80": ("mma.sync",),
    "sm_90": ("wgmma.mma_async", "mma.sync"),
    "sm_100": ("tcgen05.mma", "mma.sync"),
    "gfx942": ("v_mfma",),
    "gfx1100": ("v_wmma",),
}
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 65536, "gfx1100": 65536}
CONVOLUTIONS = ("forward_kernel", "recompute_kernel", "grad_input_kernel", "grad_weight_kernel")
NORM_KERNELS = (
    "measure_kernel", "apply_kernel", "forward_held_kernel", "forward_across_kernel",
    "sums_kernel", "finish_kernel", "grad_input_kernel", "grad_input_across_kernel",
    "backward_held_kernel", "backward_across_kernel",
)  # fmt: skip
OTHERS = ("finish_kernel", "finish_forward_kernel", "start_backward_kernel")


def report(*options: str, module: str = "report") -> list[dict]:
    """The report's rows, from a process in which kernels are compiled and not interpreted."""
    return [json.loads(line) for line in said(f"film_kernels.backends.triton.{module}", "--json", *options)]


def said(module: str, *options: str) -> list[str]:
    """The lines that a module prints in such a process."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    return done.stdout.splitlines()


def check(rows: list[dict]) -> None:
    """Nothing spills, shared memory fits, and convolutions use matrix units, which exact float32 has on CDNA only."""
    for row in rows:
        assert row["spills"] == 0 and row["shared"] <= SHARED[row["target"]], row
        exact = row["dtype"] == "float32" or (row["dtype"] == "tf32" and not row["target"].startswith("sm"))
        claimed = row["kernel"] in CONVOLUTIONS and (not exact or row["target"] == "gfx942")
        assert (row["instruction"] in MATRIX[row["target"]]) == claimed, row


def test_the_rules_own_entries():
    rows = report("--default", "--case", "few_channels", "strided", "--dtype", "float16")
    check(rows)
    assert {(row["kernel"], row["target"]) for row in rows} == {(k, t) for k in CONVOLUTIONS + OTHERS for t in TARGETS}


def test_large_tiles_use_the_newest_matrix_units():
    rows = report("--default", "--case", "wide", "--dtype", "bfloat16", "--target", "sm_90", "sm_100")
    check(rows)
    found = {(row["target"], row["instruction"]) for row in rows if row["kernel"] in CONVOLUTIONS}
    assert found == {("sm_90", "wgmma.mma_async"), ("sm_100", "tcgen05.mma")}
    shares = {row["kernel"]: row["share"] for row in rows if row["target"] == "sm_90"}
    assert shares["grad_input_kernel"] > 0.75 and shares["grad_weight_kernel"] > 0.4, shares  # with relu, in halves


def test_what_is_not_there_and_what_is_not_wanted():
    from tests.triton_backend import partial_gradients

    assert len(said("tests.triton_backend.partial_gradients")) == len(partial_gradients.CASES)


def test_exact_float32_stays_exact_on_blackwell():
    """Triton has given products to the matrix unit as tf32 that were asked for exact."""
    rows = report("--dtype", "float32", "--case", "wide", "few_channels", "--target", "sm_100")
    check(rows)
    assert {row["kernel"] for row in rows} >= set(CONVOLUTIONS)


def check_norm(rows: list[dict], kernels: tuple[str, ...]) -> None:
    assert all(row["spills"] == 0 and row["shared"] <= SHARED[row["target"]] for row in rows), rows
    assert {row["kernel"] for row in rows} == set(kernels)


def test_kernels_of_normalisations():
    options = (
        "--case",
        "small_maps",
        "small_groups_last",
        "l2_maps",
        "long_tokens",
        "over_2_31",
        "--dtype",
        "bfloat16",
        "--target",
        "sm_90",
        "gfx942",
        "--default",
    )
    check_norm(report(*options, module="norm_report"), NORM_KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_kernels_of_every_normalisation(dtype):
    check_norm(report("--default", "--dtype", dtype, module="norm_report"), NORM_KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "tf32", "float32"])
def test_every_entry(dtype):
    rows = report("--dtype", dtype)
    check(rows)
    assert {(row["kernel"], row["target"]) for row in rows} == {(k, t) for k in CONVOLUTIONS + OTHERS for t in TARGETS}
