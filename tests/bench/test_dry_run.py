"""A dry run of the whole suite, in small: what it writes. No figure is judged here."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from dataclasses import replace

import pytest
import torch

from bench import memory, report, results
from bench.peers import PEERS
from bench.shapes import OPERATORS, ROWS, TINY
from tests.helpers.performance_suite import BUDGET, CPU, start

of_each = pytest.mark.parametrize("operator", OPERATORS)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(folder, what was printed, seconds) of a dry run of all benchmarks."""
    out = tmp_path_factory.mktemp("dry")
    begin = time.monotonic()
    done = start("-m", "bench", "gpu", DRY="1", BUDGET_S=str(BUDGET), OUT=str(out))
    assert done.returncode == 0, done.stdout
    return out, done.stdout, time.monotonic() - begin


def test_a_dry_run_keeps_its_budget_and_ends_with_a_summary(dry):
    out, printed, seconds = dry
    assert seconds < BUDGET
    summary = (out / "summary.txt").read_text()
    assert printed.endswith(summary)
    parts = [f"{operator} {name}" for operator in OPERATORS for name in ("forward", "training", "memory")]
    for part in parts:
        assert f"\n{part}: passed in" in "\n" + summary


@of_each
def test_every_row_and_peer_has_a_time_or_a_reason(dry, operator):
    found = results.read(dry[0] / operator)
    own = [name for name, row in ROWS.items() if row.case.operator == operator and not row.only_gpu]
    reasons = {(one.kind, one.row, one.peer): one for one in found.reasons}
    for kind, row, peer in itertools.product(results.KINDS, own, PEERS):
        timed = found.seconds.get(kind, {}).get(row, {}).get(peer)
        reason = reasons.get((kind, row, peer))
        assert (timed is None) == (reason is not None), (kind, row, peer)
        assert timed is None or timed > 0
        assert reason is None or (reason.reason and not reason.failed), reason
    for kind in results.KINDS:
        measured = found.rows(kind)
        assert measured and set(measured) <= set(own), kind
        for row, medians in measured.items():
            assert {"plain", "automatic", "vendor", "reference"} <= set(medians), row
    assert set(found.rows("call")) == set(found.rows("recorded call")) == {TINY[operator].name}
    assert set(found.rows("network")) == {memory.NETWORKS[operator].name}


@of_each
def test_json_is_pytest_benchmarks(dry, operator):
    for name in report.FILES:
        data = json.loads((dry[0] / operator / name).read_text())
        assert data["version"] and data["machine_info"]["torch"] == torch.__version__
        for one in data["benchmarks"]:
            assert one["stats"]["rounds"] == len(one["stats"]["data"]) >= 2
            assert one["stats"]["median"] == pytest.approx(statistics.median(one["stats"]["data"]))


@of_each
def test_the_table_has_a_row_for_each_layer_and_says_where_we_lose(dry, operator):
    found, text = results.read(dry[0] / operator), (dry[0] / operator / "report.md").read_text()
    assert text.startswith(f"# Performance of {operator} on ")
    for kind, title in (("forward", "## Forward"), ("training", "## Training step")):
        section = text.split(title)[1].split("\n## ")[0]
        lines = {line.split(" | ")[0].removeprefix("| "): line for line in section.splitlines() if line[:1] == "|"}
        assert set(found.rows(kind)) == set(lines) - {"layer", "---"}
        for row in found.rows(kind):
            assert ("**LOSES**" in lines[row]) == (found.best_alternative(kind, row)[1] < 1)
    for reason in found.reasons:
        lines = [line for line in text.splitlines() if f": {reason.reason} (" in line]
        assert any(reason.peer in line.split(": ")[0] for line in lines), reason


@of_each
def test_the_geometric_means_are_those_of_the_rows(dry, operator):
    found, text = results.read(dry[0] / operator), (dry[0] / operator / "report.md").read_text()
    lines = [line for line in text.split("## Geometric means")[1].split("\n## ")[0].splitlines() if line[:1] == "|"]
    header, means = lines[0], {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}
    assert header.startswith("| step | rows | plain / automatic |")
    for kind in results.KINDS:
        for dtype, rows in found.dtypes(kind).items():
            ratios = [found.ratios(kind, row)["automatic"] for row in rows]
            said = f" | {len(rows)} | {statistics.geometric_mean(ratios):.2f}, least {min(ratios):.2f} | "
            assert said in means.pop(f"{kind}, {dtype}")
    assert not means


@of_each
def test_the_chart_is_a_picture(dry, operator):
    pytest.importorskip("matplotlib")
    Image = pytest.importorskip("PIL.Image")
    with Image.open(dry[0] / operator / "chart.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def kept_by_the_network(dry, operator, peer):
    about = results.read(dry[0] / operator).about
    return about["network", memory.NETWORKS[operator].name, peer]["kept_bytes"]


def test_the_network_keeps_less_with_a_fused_kernel(dry):
    assert 1.9 < kept_by_the_network(dry, "conv_film", "plain") / kept_by_the_network(dry, "conv_film", "cpu") <= 2


def test_a_network_of_norms_keeps_a_third(dry):
    """Inputs alone, where plain PyTorch keeps what FiLM and the activation get too."""
    plain, ours = (kept_by_the_network(dry, "norm_film", peer) for peer in ("plain", "automatic"))
    assert 3 <= plain / ours < 3.3


def test_a_norm_keeps_two_numbers_a_group(dry):
    kept = {(one["row"], one["peer"]): one["bytes"] for one in results.read(dry[0] / "norm_film").kept}
    rows = [name for name, row in ROWS.items() if row.case.operator == "norm_film" and not row.channels_last]
    rows = [name for name in rows if not ROWS[name].only_gpu]
    assert {row for row, _ in kept} == set(rows)
    for name in rows:
        problem = replace(ROWS[name], tiny=True).problem(CPU)
        groups = math.prod(problem.input_shape) // problem.group_size
        assert kept[name, "automatic"] <= 2 * groups * problem.accumulates_in.itemsize < kept[name, "plain"]
