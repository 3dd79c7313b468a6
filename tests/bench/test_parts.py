"""The parts of a run: one that fails or hangs does not stop the others."""

from __future__ import annotations

import signal
import sys
import time

from bench import parts


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
