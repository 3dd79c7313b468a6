"""Whole models: what is wrong is not timed, what is missing or slower is said."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from bench import exported, model_child, model_packages, model_report, model_ways, model_zoo, models, timing
from bench.model_ways import FUSE, PLAIN, TRAINING, WAYS, Way
from tests.helpers.conversion.equality import without_a_judge

CLEVR, PDE, UNET = "CLEVR FiLM blocks", "pdearena U-Net, GroupNorm", "diffusers UNet2DModel, scale_shift"


def test_a_model_is_measured_in_every_part_and_reported(tmp_path):
    words = ["--small", "--seconds", "0", "--out", str(tmp_path), "--models", CLEVR]
    models.main([*words, "--ways", PLAIN, FUSE, "--parts", "times", "peak"])
    assert (tmp_path / models.CHART).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / models.REPORT).read_text()
    rows = [
        line.replace("*", "").strip("| ").split(" | ") for line in text.splitlines() if CLEVR in line and "|" in line
    ]
    # In this size BatchNorm in training gains nothing by being one call, and is left as it is.
    assert [row[2] for row in rows if "x14x14" in row[1]] == ["4 of 4", "0 of 4, 4 not faster"]
    memory = {row[1]: row for row in rows if "x14x14" not in row[1]}
    assert list(memory) == ["kept by autograd", "peak, inference", "peak, training"]
    assert float(memory["kept by autograd"][3]) == 1
    before = json.loads((tmp_path / models.DATA).read_text())["models"][CLEVR]
    models.main([*words, "--ways", PLAIN, "--parts", "default malloc"])
    after = json.loads((tmp_path / models.DATA).read_text())["models"][CLEVR]
    assert after.pop("default malloc")["training"][PLAIN]["seconds"] > 0
    assert after == before  # what is not measured again stays


@pytest.mark.parametrize("name", [CLEVR, PDE, "pdearena U-Net, no norm", "micro-tcn", UNET])
def test_every_site_of_these_is_fused_and_gives_the_same(name):
    with without_a_judge():  # small ones gain nothing
        found = model_child.about(model_zoo.MODELS[name], small=True)
        assert all(one["fused"] == one["all"] > 0 for one in found["sites"].values())
        for rows in model_child.times(model_zoo.MODELS[name], [FUSE], 0, small=True).values():
            assert len(rows[FUSE]["seconds"]) == len(rows[PLAIN]["seconds"]) == 1, rows


class _OtherGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad


def _ending_in(change):
    class Changed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self._orig_mod = model

        def forward(self, *args):
            return change(self._orig_mod(*args))

    return Changed


@pytest.mark.parametrize(
    ("change", "wrong_in", "said"),
    [
        (lambda y: 1.01 * y, model_ways.KINDS, "result is off"),
        (lambda y: y * float("nan"), model_ways.KINDS, "result is off"),
        (_OtherGradient.apply, (TRAINING,), "is off"),
        (lambda y: y.detach().requires_grad_(), (TRAINING,), "other parameters have gradients"),
        (lambda y: y[0] / 0, (), ""),
    ],
)
def test_a_wrong_way_is_never_timed(monkeypatch, change, wrong_in, said):
    monkeypatch.setitem(WAYS, "changed", Way("changed", _ending_in(change) if said else _broken))
    found = model_child.times(model_zoo.MODELS[CLEVR], ["changed", FUSE], 0, small=True)
    for kind in model_ways.KINDS:
        row = found[kind]["changed"]
        if not said:
            assert row == {"failed": "ValueError: broken"}
        elif kind in wrong_in:
            assert said in row["failed"] and "seconds" not in row
        else:
            assert row["seconds"]
        assert found[kind][FUSE]["seconds"]


def _broken(model):
    def forward(*args):
        raise ValueError("broken")

    model.forward = forward
    return model


@pytest.mark.parametrize("name", [CLEVR, "micro-tcn"])
def test_a_peer_is_timed_where_it_is_right(monkeypatch, name):
    monkeypatch.setattr(timing, "_UNTIL_AT_REST", 0.0)
    opened = exported.RUNTIMES["onnxruntime"]
    monkeypatch.setitem(exported.RUNTIMES, "wrong", lambda file: lambda inputs: 1.01 * opened(file)(inputs))
    monkeypatch.setitem(exported.RUNTIMES, "broken", _broken_runtime)
    found = model_child.peers(model_zoo.MODELS[name], ["onnxruntime", "wrong", "broken"], 0, small=True)
    assert len(found["onnxruntime"]["seconds"]["onnxruntime"]) == len(found["onnxruntime"]["seconds"][PLAIN]) == 1
    assert "result is off by 1.0e-02" in found["wrong"]["failed"]
    assert found["broken"] == {"refused": "broken: RuntimeError: no such operator"}


def _broken_runtime(file):
    raise RuntimeError("no such operator\nand more")


def test_a_model_that_cannot_be_exported_says_why():
    class Refusing(nn.Module):
        def forward(self, x):
            raise ValueError("not here")

    with (
        pytest.raises(exported.NotExported, match=r"torch.export: .*; tracing: ValueError: not here"),
        exported.exported(Refusing(), (torch.ones(2),)),
    ):
        pass


def test_what_is_slower_is_bold_and_counted():
    data = {"machine": {"device": "a machine"}, "models": {
        "slow": _model(plain=0.97, fuse=1.0), "equal": _model(plain=0.99, fuse=1.0, why="not faster here: small"),
        "missing": {"not installed": "not installed: pip install --no-deps missing"},
    }}  # fmt: skip
    text = model_report.report(data)
    assert "- **SLOWER for being fused: 1 of 2** (model, step, way)." in text
    assert "- **slow, inference, `fuse`: 0.97**" in text
    assert "| **slow** | 1x2 | 1 of 2 | 970 | **0.97** |" in text
    assert "| equal | 1x2 | 1 of 2, 1 not faster | 990 | 0.99 |" in text
    assert "- slow, inference, `conv` (conv2d film): why" in text
    assert "- `torch.compile`, inference: not run (all models)" in text and "`fuse`, inference: not" not in text


def test_a_package_that_is_missing_is_said(tmp_path, monkeypatch):
    def make(small):
        return model_packages.read("no_such_package.nets", "no-such-package")

    monkeypatch.setitem(model_zoo.MODELS, "missing", model_zoo.Model("missing", make))
    with pytest.raises(model_packages.NotInstalled):
        model_zoo.MODELS["missing"].made()
    monkeypatch.setattr(models, "run", lambda *args: _printed("about", "missing", "--small"))
    models.main(["--models", "missing", "--out", str(tmp_path)])
    said = "- missing: not installed: pip install --no-deps no-such-package"
    assert said in (tmp_path / models.REPORT).read_text()


def _printed(*words):
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", found.append)
        model_child.main(words)
    return json.loads(found[-1])


def _model(plain, fuse, why="why"):
    sites = {"all": 2, "fused": 1, "not fused": [["conv", "conv2d film", why]]}
    times = {PLAIN: {"seconds": plain, "plain": plain}, FUSE: {"seconds": fuse, "plain": plain}}
    return {"sizes": "1x2", "sites": dict.fromkeys(model_ways.KINDS, sites), "times": {"inference": times}}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_a_step_is_what_it_held_at_once():
    megabytes = [64, 32]

    def step():
        for size in megabytes:  # one after the other
            torch.ones(size << 18)

    assert 62 << 20 < model_child._peak_of(step) < 80 << 20


def test_a_module_is_read_without_what_its_package_imports(tmp_path, monkeypatch):
    nets = tmp_path / "a_package" / "nets"
    nets.mkdir(parents=True)
    (tmp_path / "a_package" / "__init__.py").write_text("import a_trainer_that_is_missing\n")
    (nets / "heavy.py").write_text("raise RuntimeError\n")
    (nets / "net.py").write_text(
        "import torch\nfrom a_trainer.loops import Loop\nfrom a_package.nets.heavy import Base\n"
        "class Net(torch.nn.Module, Base):\n    loop = Loop\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    absent = ("a_trainer", "a_package.nets.heavy")
    found = model_packages.read("a_package.nets.net", "a-package", ["a_package", "a_package.nets"], absent)
    assert issubclass(found.Net, nn.Module) and found.Net.loop.__name__ == "Loop"
    new = {name for name in set(sys.modules) - before if name.startswith("a_")}
    for name in new:
        del sys.modules[name]
    assert new == {"a_package", "a_package.nets", "a_package.nets.net"}  # no stand-in stays


def test_a_name_that_is_in_no_model_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        models.main(["--models", "no such model", "--out", str(tmp_path)])
    assert "'no such model' is in none of" in capsys.readouterr().err
