"""Whole models, plain and fused."""

from __future__ import annotations

import pytest

from bench import models


def test_every_model_is_measured_in_both_modes_and_reported(tmp_path):
    models.main(["--small", "--seconds", "0", "--out", str(tmp_path)])
    text = (tmp_path / models.FILE).read_text()
    for model in models.models(small=True):
        lines = [line for line in text.splitlines() if line.startswith(f"| {model.name} |")]
        assert [line.split(" | ")[2] for line in lines] == ["inference", "training", "kept by autograd"]
        kept = [float(cell) for cell in lines[2].strip(" |").split(" | ")[4:]]
        assert kept[0] > kept[1] >= 1  # norms without FiLM keep less too
    assert "- diffusers UNet2DModel, scale_shift: 25 of 25 sites are fused" in text


def test_a_model_that_fusing_changes_is_no_result(monkeypatch):
    monkeypatch.setitem(models._WAYS, "fuse", lambda model: model.requires_grad_(False).apply(_zero))
    with pytest.raises(RuntimeError, match="fuse gives another result"):
        models.measure(models.models(small=True)[0], 0)


def _zero(module):
    for parameter in module.parameters(recurse=False):
        parameter.zero_()
