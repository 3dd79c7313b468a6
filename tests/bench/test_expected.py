"""What is expected on a card is worked out without one."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from bench import expected, launches
from bench.limits import Peaks
from bench.shapes import ROWS


def test_plain_pytorch_is_an_operator_a_launch():
    forward = launches.plain(ROWS["CLEVR channels_last half"], "forward")
    assert [one.what for one in forward] == ["convolution", "bias", "relu", "mul", "add"]
    y, row = 64 * 128 * 14 * 14 * 2, 64 * 128 * 2
    assert [one.bytes for one in forward[1:]] == [2 * y, 2 * y, 2 * y + row, 2 * y + row]
    assert forward[0].flops == y * 128 * 9
    training = launches.plain(ROWS["CLEVR channels_last half"], "training")
    gradients = [one for one in training if one.what == "convolution_backward"]
    assert [one.flops for one in gradients] == [forward[0].flops] * 2


def test_a_launch_takes_the_longer_of_products_and_bytes():
    peaks = Peaks(flops=1e12, bandwidth=1e9)
    alone = launches.Launch("", 0.0).seconds(peaks)
    assert launches.Launch("", 1e9, 1e12, 0.5).seconds(peaks) == pytest.approx(2 + alone)
    assert launches.Launch("", 4e9, 1e12, 0.5).seconds(peaks) == pytest.approx(4 + alone)


@pytest.mark.parametrize(
    ("name", "keep", "forward", "training"),
    [
        ("CLEVR channels_last half", "fast", ("triton", 1), ("triton", 6)),
        ("CLEVR channels_last half", "least", ("triton", 1), ("triton least", 5)),
        ("tutorial N=32", "fast", ("cuda", 1), ("cuda bits", 4)),
        ("CLEVR", "fast", ("vendor", 2), ("vendor", 6)),
        ("GroupNorm, DDPM half", "fast", ("triton", 1), ("triton", 4)),
    ],
)
def test_steps_are_those_of_the_backend_that_would_serve(name, keep, forward, training, monkeypatch):
    monkeypatch.setattr(expected, "_counted", lambda problem, kernel: 0.5)
    for kind, counted in (("forward", forward), ("training", training)):
        serves, steps = expected.ours(ROWS[name], kind, keep)
        assert (serves, len(steps)) == counted


def test_the_page_has_a_line_for_each_step_and_the_times_of_a_card(monkeypatch, capsys):
    monkeypatch.setattr(expected, "_counted", lambda problem, kernel: 0.5)
    assert expected.main(["--only", "CLEVR channels_last half", "--measured", str(expected._H200)]) == 0
    said = capsys.readouterr().out
    measured = [line.split("|") for line in said.splitlines() if line.startswith("| CLEVR")]
    assert [line[2].strip() for line in measured] == ["forward", "training"]
    assert all(float(line[-2]) > 1 for line in measured)
