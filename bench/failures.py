"""A plugin of pytest (`-p bench.failures`) that says what failed at once: a run that is stopped says nothing later."""

from __future__ import annotations

_END = 1500  # characters of a report, of which the last say what was wrong


def pytest_runtest_logreport(report) -> None:
    if report.failed:
        print(f"\nFAILED {report.nodeid}\n{str(report.longrepr)[-_END:]}", flush=True)
