"""The performance suite in its small form: what it writes, and what it does when something goes wrong. No figure is
judged here."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import __main__ as command
from bench import check, drawn, limits, memory, parts, report, results, timing
from bench.peers import PEERS, PLAIN, Peer
from bench.runner import Budget, Outcome, Runner, checked
from bench.shapes import CASES, ROWS, TINY, Row
from bench.work import make, plain

CHECKOUT = Path(__file__).parents[1]
CPU = torch.device("cpu")
BUDGET = 100  # seconds, of which a machine with nothing else to do needs a third
TINY_ROW = Row(CASES[0], tiny=True)
SHORT = timing.Rounds(2, 3)


def start(*words, **variables):
    """A Python process in the checkout, on one thread: others may be at work beside it. It is not told of Triton's
    interpreter, which is nobody to be timed, nor that these tests may be shared out, where pytest-benchmark is off."""
    unlike = ("TRITON_INTERPRET", "PYTEST_XDIST", "PYTEST_ADDOPTS")
    here = {name: value for name, value in os.environ.items() if not name.startswith(unlike)}
    environment = {**here, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *words], cwd=CHECKOUT, env=environment, text=True, stdout=subprocess.PIPE, timeout=4 * BUDGET
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(folder, what was printed, seconds) of a dry run of everything."""
    out = tmp_path_factory.mktemp("dry")
    begin = time.monotonic()
    done = start("-m", "bench", "check-gpu", DRY="1", BUDGET_S=str(BUDGET), OUT=str(out))
    assert done.returncode == (0 if (CHECKOUT / "setup.py").exists() else 1), done.stdout  # a wheel has none to build
    return out, done.stdout, time.monotonic() - begin


def test_a_dry_run_keeps_its_budget_and_ends_with_a_summary(dry):
    out, printed, seconds = dry
    assert seconds < BUDGET
    summary = (out / "summary.txt").read_text()
    assert printed.endswith(summary)
    for part in ("tests", "forward", "training", "memory"):
        assert f"\n{part}: passed in" in "\n" + summary
    assert "\nbuild: " in "\n" + summary


def test_every_row_and_peer_has_a_time_or_a_reason(dry):
    found = results.read(dry[0])
    reasons = {(one.kind, one.row, one.peer): one for one in found.reasons}
    for kind, row, peer in itertools.product(results.KINDS, ROWS, PEERS):
        timed = found.seconds.get(kind, {}).get(row, {}).get(peer)
        reason = reasons.get((kind, row, peer))
        assert (timed is None) == (reason is not None), (kind, row, peer)
        assert timed is None or timed > 0
        assert reason is None or (reason.reason and not reason.failed), reason
    for kind in results.KINDS:
        measured = found.rows(kind)
        assert measured, kind
        for row, medians in measured.items():
            assert {"plain", "automatic", "vendor", "reference"} <= set(medians), row
    assert {"call", "recorded call", "network"} <= set(found.seconds)


def test_json_is_pytest_benchmarks(dry):
    for name in report.FILES:
        data = json.loads((dry[0] / name).read_text())
        assert data["version"] and data["machine_info"]["torch"] == torch.__version__
        for one in data["benchmarks"]:
            assert one["stats"]["rounds"] == len(one["stats"]["data"]) >= 2
            assert one["stats"]["median"] == pytest.approx(statistics.median(one["stats"]["data"]))


def test_the_table_has_a_row_for_each_layer_and_says_where_we_lose(dry):
    found, text = results.read(dry[0]), (dry[0] / "report.md").read_text()
    for kind, title in (("forward", "## Forward"), ("training", "## Training step")):
        section = text.split(title)[1].split("\n## ")[0]
        lines = {line.split(" | ")[0].removeprefix("| "): line for line in section.splitlines() if line[:1] == "|"}
        assert set(found.rows(kind)) == set(lines) - {"layer", "---"}
        for row in found.rows(kind):
            assert ("**LOSES**" in lines[row]) == (found.best_alternative(kind, row)[1] < 1)
    for reason in found.reasons:
        lines = [line for line in text.splitlines() if f": {reason.reason} (" in line]
        assert any(reason.peer in line.split(": ")[0] for line in lines), reason


def test_the_chart_is_a_picture(dry):
    with Image.open(dry[0] / "chart.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_the_network_keeps_less_with_a_fused_kernel(dry):
    about = results.read(dry[0]).about
    plain_bytes = about["network", memory.NETWORK.name, "plain"]["kept_bytes"]
    assert 1.9 < plain_bytes / about["network", memory.NETWORK.name, "cpu"]["kept_bytes"] <= 2


def test_without_pytest_benchmark_a_stand_in_writes_what_the_report_reads(tmp_path):
    words = ["-q", "-p", "no:benchmark", "-p", "bench.stand_in", "-p", "no:cacheprovider", "--tiny", "--seconds=1"]
    file = tmp_path / "memory.json"
    done = start("-m", "pytest", *words, "bench/test_memory.py", "-k", "network or CLEVR", f"--benchmark-json={file}")
    assert done.returncode == 0, done.stdout
    assert any("network" in line or "times as fast" in line for line in report.make(tmp_path))
    assert {"plain", "cpu"} <= set(results.read(tmp_path).rows("network")[memory.NETWORK.name])
    assert "## What autograd keeps" in (tmp_path / "report.md").read_text()


GOOD = {"machine_info": {"device": "it"}, "datetime": "2026-01-01", "benchmarks": [],
        "suite": {"peaks": {}, "kept": [], "unserved": []}}  # fmt: skip
TIMED = {"extra_info": {"kind": "forward", "row": "a", "peer": "plain", "shape": "s", "dtype": "d"},
         "stats": {"data": [1.0], "rounds": 1}}  # fmt: skip


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"{}", {**GOOD, "machine_info": None}, {**GOOD, "datetime": 3},
    {**GOOD, "suite": []}, {**GOOD, "benchmarks": [{}]}, {**GOOD, "benchmarks": [{**TIMED, "stats": {"data": []}}]},
    {**GOOD, "benchmarks": [{**TIMED, "extra_info": {"kind": [], "row": "a", "peer": "plain"}}]},
    {**GOOD, "benchmarks": [{**TIMED, "extra_info": {**TIMED["extra_info"], "peer": "nobody"}}]},
    {**GOOD, "benchmarks": [{**TIMED, "extra_info": {"kind": "forward", "row": "a", "peer": "plain"}}]},
], ids=lambda content: str(content)[:40])  # fmt: skip
def test_results_that_are_not_the_suites_are_said(tmp_path, capsys, content):
    (tmp_path / "forward.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert report.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("no report: ")
    assert "no report: " in command.finish(tmp_path, [])


def test_results_of_one_peer_can_be_reported(tmp_path, capsys):
    (tmp_path / "forward.json").write_text(json.dumps({**GOOD, "benchmarks": [TIMED]}))
    assert report.main([str(tmp_path)]) == 0 and "nothing was measured" in capsys.readouterr().out


def test_a_folder_without_results_is_said(tmp_path, capsys):
    assert report.main([str(tmp_path / "none")]) == 1
    assert "none of forward.json" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("BUDGET_S", "soon"), ("BUDGET_S", "nan"), ("BUDGET_S", "-1"),
                                             ("OUT", __file__), ("OUT", "x" * 5000)])  # fmt: skip
def test_a_variable_that_cannot_be_used_is_said(monkeypatch, capsys, name, value):
    monkeypatch.setenv("DRY", "1")
    monkeypatch.setenv(name, value)
    assert command.main(["cpu"]) == 2
    assert capsys.readouterr().err.startswith(name)


@pytest.mark.parametrize("option", ["--layers=0", "--seconds=nan", "--seed=x", f"--out={__file__}"])
def test_an_option_of_drawn_layers_that_cannot_be_used_is_said(capsys, option):
    with pytest.raises(SystemExit):
        drawn.main([option])
    assert option.partition("=")[0] in capsys.readouterr().err


@pytest.fixture
def known_peaks(monkeypatch):
    """Peaks that need not be measured."""
    monkeypatch.setitem(limits.MEASURED, torch.float32, limits.Peaks(1e11, 1e10))


class WrongGradient(torch.autograd.Function):
    """The identity, with a gradient twice as large."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def altered(change):
    """A peer that changes plain PyTorch's output, and the number of its calls so far."""
    calls = []

    def build(work):
        def call(input):
            calls.append(1)
            return change(plain(work.row.case, input, *work.leaves[1:]))

        return call

    return Peer("altered", build, ours=True), calls


def one_corner(y):
    corner = torch.zeros_like(y)
    corner[..., -1] = 0.01
    return y + corner


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("forward", one_corner, "output is wrong"),
        ("forward", lambda y: y * float("nan"), "output is wrong"),
        ("forward", lambda y: y[:, 1:], "output has shape"),
        ("training", WrongGradient.apply, "grad_input is wrong"),
    ],
)
@pytest.mark.parametrize("row", [TINY_ROW, Row(CASES[-1], tiny=True)], ids=lambda row: row.name)
def test_a_wrong_peer_is_caught_and_never_timed(monkeypatch, known_peaks, row, kind, change, said):
    peer, calls = altered(change)
    monkeypatch.setitem(PEERS, "altered", peer)
    outcomes = Runner(CPU, Budget(5, 1), SHORT).measure(row, kind, ("plain", "altered"))
    assert outcomes["plain"].times
    assert outcomes["altered"].times == [] and outcomes["altered"].failed
    assert said in outcomes["altered"].reason
    assert len(calls) == 1


@pytest.mark.parametrize("name", ROWS)
def test_plain_pytorch_passes_its_own_check(name):
    row = Row(ROWS[name].case, ROWS[name].channels_last, tiny=True)
    work = make(row, CPU)
    assert callable(checked(PLAIN, work, "training", check.expect(work, "training")))


def test_an_error_is_a_reason_and_the_other_peers_are_timed(monkeypatch, known_peaks):
    def build(work):
        raise RuntimeError("no such engine\nand more")

    monkeypatch.setitem(PEERS, "broken", Peer("broken", build))
    monkeypatch.setitem(PEERS, "ours", Peer("ours", build, ours=True))
    outcomes = Runner(CPU, Budget(5, 1), SHORT).measure(TINY_ROW, "forward", ("plain", "broken", "ours"))
    assert outcomes["broken"] == Outcome([], "RuntimeError: no such engine")
    assert outcomes["ours"] == Outcome([], "RuntimeError: no such engine", failed=True)
    assert outcomes["plain"].times


def test_compiled_peers_are_right_and_timed(known_peaks):
    runner = Runner(CPU, Budget(600, 1), SHORT)
    outcomes = runner.measure(TINY_ROW, "forward", ("plain", "torch.compile", "max-autotune"))
    assert all(outcome.times for outcome in outcomes.values()), outcomes
    assert len({len(outcome.times) for outcome in outcomes.values()}) == 1


def test_rows_that_come_too_late_are_left_out_and_say_so():
    begin, seconds = time.monotonic(), 1.0
    runner = Runner(CPU, Budget(seconds, 99), SHORT)
    outcomes = [runner.measure(TINY, "call", ("plain", "automatic")) for _ in range(99)]
    late = [one["plain"].reason for one in outcomes if not one["plain"].times]
    assert outcomes[0]["plain"].times and outcomes[0]["automatic"].times
    assert late and all("budget" in reason for reason in late)
    assert not any(outcome.times for outcome in outcomes[-1].values())
    assert time.monotonic() - begin < 2 * seconds


def test_rounds_are_interleaved():
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = timing.interleaved(steps, CPU, seconds=0, rounds=timing.Rounds(4, 9))
    assert all(len(one) == 4 for one in times.values())
    rounds = [calls[i : i + 3] for i in range(3, len(calls), 3)]  # after the warm-up
    assert len(rounds) == 4 and all(sorted(one) == ["a", "b", "c"] for one in rounds)


def test_the_limit_is_the_slower_of_products_and_bytes():
    assert limits.cost(TINY, CPU, "forward") == (2 * 8 * 16 * 4, 4 * (64 + 32 + 128))
    assert limits.cost(TINY, CPU, "training") == (6 * 8 * 16 * 4, 4 * (3 * 64 + 3 * 32 + 2 * 128))
    assert limits.share(limits.Cost(10, 2), limits.Peaks(10, 1), 4) == 0.5
    assert limits.share(limits.Cost(10, 2), limits.Peaks(2.5, 1), 4) == 1


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_others(tmp_path):
    def python(code):
        return lambda seconds: [sys.executable, "-c", code]

    begin = time.monotonic()
    done = parts.run(
        [
            parts.Part("fails", python("print('no luck'); raise SystemExit(3)"), 0.5),
            parts.Part("missing", lambda seconds: [str(tmp_path / "nothing")], 0.5),
            parts.Part("hangs", python("import time; print('begun', flush=True); time.sleep(99)"), 0.3),
            parts.Part("works", lambda seconds: [sys.executable, "-c", f"print({seconds} < 6)"], 0.5),
            parts.Part("takes the rest", python("import time; time.sleep(99)"), 1.0),
            parts.Part("too late", python("print('never')"), 1.0),
        ],
        6,
        tmp_path / "log.txt",
    )
    assert time.monotonic() - begin < 8
    assert [one.failed for one in done] == [True, True, True, False, True, True]
    lines = {one.name: one.line for one in done}
    assert lines["fails"].startswith("FAILED (exit code 3)") and lines["fails"].endswith("no luck")
    assert "could not be started" in lines["missing"]
    assert "stopped" in lines["hangs"] and lines["hangs"].endswith("begun")
    assert lines["works"].endswith(": True")
    assert "not begun" in lines["too late"]


def test_a_part_can_be_interrupted_in_a_background_job(tmp_path):
    """There a shell has interrupts ignored, which a part inherits; nothing it had to say would be written."""
    code = "import time\ntry:\n    time.sleep(99)\nexcept KeyboardInterrupt:\n    print('written')"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        (done,) = parts.run(
            [parts.Part("hangs", lambda seconds: [sys.executable, "-c", code], 0.5)], 6, tmp_path / "log"
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.failed and done.line.endswith("it said: written")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without a GPU")
def test_without_a_gpu_the_gpus_commands_say_so(monkeypatch, capsys):
    monkeypatch.delenv("DRY", raising=False)
    assert command.main(["check-gpu"]) == command.main(["gpu"]) == 2
    assert "DRY=1" in capsys.readouterr().err


def test_layers_drawn_by_lot_are_the_same_for_a_seed_and_are_all_reported(tmp_path, monkeypatch):
    rows = drawn.draw(3, 40)
    assert rows == drawn.draw(3, 40) != drawn.draw(4, 40)
    assert all(math.prod(row.problem(CPU).out_shape) > 0 for row in rows)
    monkeypatch.setattr(drawn, "draw", lambda seed, count: [replace(row, tiny=True) for row in rows[:count]])
    drawn.main(["--layers", "2", "--seconds", "60", "--out", str(tmp_path)])
    text = (tmp_path / drawn.FILE).read_text()
    assert text.startswith("# 2 layers drawn by lot (seed 0)") and all(f"| {row.name} |" in text for row in rows[:2])
    drawn.main(["--layers", "2", "--seconds", "0", "--out", str(tmp_path)])  # nothing was in time
    assert (tmp_path / drawn.FILE).read_text().startswith("# 0 layers")
