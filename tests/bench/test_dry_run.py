"""A dry run of the whole suite, in small: what it writes. No figure is judged here."""

from __future__ import annotations

import itertools
import json
import statistics
import time

import pytest
import torch

from bench import memory, report, results
from bench.peers import PEERS
from bench.shapes import ROWS
from tests.helpers.performance_suite import BUDGET, start
from tests.helpers.subprocesses import ROOT


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(folder, what was printed, seconds) of a dry run of everything."""
    out = tmp_path_factory.mktemp("dry")
    begin = time.monotonic()
    done = start("-m", "bench", "check-gpu", DRY="1", BUDGET_S=str(BUDGET), OUT=str(out))
    assert done.returncode == (0 if (ROOT / "setup.py").exists() else 1), done.stdout  # a wheel has none to build
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
    pytest.importorskip("matplotlib")
    Image = pytest.importorskip("PIL.Image")
    with Image.open(dry[0] / "chart.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_the_network_keeps_less_with_a_fused_kernel(dry):
    about = results.read(dry[0]).about
    plain_bytes = about["network", memory.NETWORK.name, "plain"]["kept_bytes"]
    assert 1.9 < plain_bytes / about["network", memory.NETWORK.name, "cpu"]["kept_bytes"] <= 2
