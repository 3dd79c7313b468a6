"""The first run on a GPU, in small on the CPU: the same commands, and what they write."""

from __future__ import annotations

import json

import pytest

from bench import first_times, gpu_check
from bench.parts import Part
from bench.shapes import ROWS
from bench.smoke_rows import rows
from film_kernels.problems.conv_film import KEEPS
from tests.helpers.performance_suite import start

BUDGET = 400  # seconds, of which a machine with nothing else to do needs a tenth


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    out = tmp_path_factory.mktemp("check")
    return out, start("-m", "bench", "check-gpu", DRY="1", BUDGET_S=str(BUDGET), OUT=str(out))


def test_a_dry_run_ends_with_a_table_and_few_files(dry):
    out, done = dry
    summary = (out / gpu_check.SUMMARY).read_text()
    assert done.stdout.endswith(summary)
    for part in ("smoke", "times", "compile ahead", "profile convolution", "profile norm", "memcheck", "racecheck"):
        assert f"\n{part}: passed in" in "\n" + summary, done.stdout
    assert "\ntests: " in summary and "| plain PyTorch / ... |" in summary
    assert len(list(out.iterdir())) <= 8
    found = json.loads((out / gpu_check.TIMES).read_text())
    assert found["machine"]["torch"] and found["rows"] and not any("wrong" in one for one in found["rows"])


def test_smoke_tries_every_backend(dry):
    found = [json.loads(line) for line in (dry[0] / gpu_check.SMOKE).read_text().splitlines()]
    for backend in ("cpu", "vendor", "reference"):
        own = [one for one in found if one["backend"] == backend]
        assert own and not any("wrong" in one for one in own)
        assert all(set(one["errors"]) >= {"y", "dinput"} for one in own if "refused" not in one)


def test_what_is_tried_and_timed():
    tried = list(rows())
    assert {row.case.keep for row in tried if row.case.operator == "conv_film"} == set(KEEPS)
    assert {row.dtype for row in tried[: len(tried) // 2]} == {row.dtype for row in tried}
    assert set(first_times._ROWS) <= set(ROWS)


def test_a_tool_that_is_not_there_is_left_out(tmp_path, monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(gpu_check.shutil, "which", lambda name, there=there: f"/bin/{name}" if there else None)
        steps = gpu_check.parts(False, tmp_path)
        parts = [part for step in steps for part in ([step] if isinstance(step, Part) else step)]
        words = {part.name: list(part.command(10.0)) for part in parts}
        assert (words["profile norm"][0] == "ncu") == (words["memcheck"][0] == "compute-sanitizer") == there
        assert "--device" not in words["smoke"] and "cuda" in words["smoke"]


def test_a_log_that_is_too_long_keeps_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "_LOG_BYTES", 100)
    log = tmp_path / "log.txt"
    log.write_text("x" * 500 + "the end")
    gpu_check.tail(log)
    assert log.stat().st_size == 100 and log.read_text().endswith("the end")
