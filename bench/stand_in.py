"""Stands in for pytest-benchmark on a machine that has only pytest (`-p bench.stand_in`): the options and the fixture
that this suite uses, and a JSON file with what the report reads."""

from __future__ import annotations

import datetime
import json
import statistics
from pathlib import Path
from typing import Any

import pytest


class _Benchmark:
    def __init__(self, timer) -> None:
        self.timer = timer
        self.group = ""
        self.extra_info: dict[str, Any] = {}
        self.times: list[float] = []

    def pedantic(self, target, setup, rounds: int) -> None:
        """Time `target` in `rounds` rounds, each with the arguments that `setup` gives."""
        for _ in range(rounds):
            arguments, options = setup()
            begin = self.timer()
            target(*arguments, **options)
            self.times.append(self.timer() - begin)


_ALL = pytest.StashKey[list[_Benchmark]]()


def pytest_addoption(parser):
    parser.addoption("--benchmark-json", type=Path)
    parser.addoption("--benchmark-quiet", action="store_true")


def pytest_configure(config):
    config.addinivalue_line("markers", "benchmark: the clock of a benchmark")
    config.stash[_ALL] = []


@pytest.fixture
def benchmark(request):
    """As pytest-benchmark's, as far as it is used here."""
    one = _Benchmark(request.node.get_closest_marker("benchmark").kwargs["timer"])
    request.config.stash[_ALL].append(one)
    return one


def pytest_sessionfinish(session):
    config = session.config
    file, found = config.getoption("--benchmark-json"), config.stash[_ALL]
    if file is None or not found:
        return
    (machine_info,) = config.hook.pytest_benchmark_generate_machine_info(config=config)
    output = {
        "machine_info": machine_info,
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "version": "stand-in",
        "benchmarks": [
            {
                "group": one.group,
                "extra_info": one.extra_info,
                "stats": {"median": statistics.median(one.times), "rounds": len(one.times), "data": one.times},
            }
            for one in found
        ],
    }
    config.hook.pytest_benchmark_update_json(config=config, output_json=output)
    file.write_text(json.dumps(output, indent=1))
