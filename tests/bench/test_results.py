"""Reports of results: of another writer, of one peer, of something else, of nothing."""

from __future__ import annotations

import json

import pytest

from bench import __main__ as command
from bench import memory, report, results
from tests.helpers.performance_suite import start


def test_without_pytest_benchmark_a_stand_in_writes_what_the_report_reads(tmp_path):
    words = ["-q", "-p", "no:benchmark", "-p", "bench.stand_in", "-p", "no:cacheprovider", "--tiny", "--seconds=1"]
    file = tmp_path / "memory.json"
    done = start("-m", "pytest", *words, "bench/test_memory.py", "-k", "network or CLEVR", f"--benchmark-json={file}")
    assert done.returncode == 0, done.stdout
    assert any("network" in line or "times as fast" in line for line in report.make(tmp_path))
    assert {"plain", "cpu"} <= set(results.read(tmp_path).rows("network")[memory.NETWORKS["conv_film"].name])
    assert "## What autograd keeps" in (tmp_path / "report.md").read_text()


GOOD = {"machine_info": {"device": "it"}, "datetime": "2026-01-01", "benchmarks": [],
        "suite": {"operator": "conv_film", "peaks": {}, "kept": [], "unserved": []}}  # fmt: skip


TIMED = {"extra_info": {"kind": "forward", "row": "a", "peer": "plain", "shape": "s", "dtype": "d"},
         "stats": {"data": [1.0], "rounds": 1}}  # fmt: skip


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"{}", {**GOOD, "machine_info": None}, {**GOOD, "datetime": 3},
    {**GOOD, "suite": []}, {**GOOD, "suite": {"peaks": {}, "kept": [], "unserved": []}}, {**GOOD, "benchmarks": [{}]},
    {**GOOD, "benchmarks": [{**TIMED, "stats": {"data": []}}]},
    {**GOOD, "benchmarks": [{**TIMED, "extra_info": {"kind": [], "row": "a", "peer": "plain"}}]},
    {**GOOD, "benchmarks": [{**TIMED, "extra_info": {**TIMED["extra_info"], "peer": "nobody"}}]},
    {**GOOD, "benchmarks": [{**TIMED, "extra_info": {"kind": "forward", "row": "a", "peer": "plain"}}]},
], ids=lambda content: str(content)[:40])  # fmt: skip
def test_results_that_are_not_the_suites_are_said(tmp_path, capsys, content):
    (tmp_path / "forward.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert report.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("no report: ")
    (tmp_path / "conv_film").mkdir()
    (tmp_path / "forward.json").rename(tmp_path / "conv_film" / "forward.json")
    assert "conv_film: no report: " in command.finish(tmp_path, ["conv_film"], [])


def test_results_of_one_peer_can_be_reported(tmp_path, capsys):
    (tmp_path / "forward.json").write_text(json.dumps({**GOOD, "benchmarks": [TIMED]}))
    assert report.main([str(tmp_path)]) == 0 and "nothing was measured" in capsys.readouterr().out


def test_a_folder_without_results_is_said(tmp_path, capsys):
    assert report.main([str(tmp_path / "none")]) == 1
    assert "none of forward.json" in capsys.readouterr().err
