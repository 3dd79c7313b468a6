"""Graphs for somebody else hold standard operators: torch.export, and ONNX in onnxruntime."""

from __future__ import annotations

import operator
import warnings

import onnxruntime
import pytest
import torch
from torch import nn

from film_kernels import BatchNormFiLM, FiLMGenerator, LayerNormFiLM, NormFiLM, RMSNormFiLM, norm_film

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Every layer and every norm."""

    def __init__(self, rms: bool = True) -> None:
        super().__init__()
        self.first, self.generator = nn.Conv2d(1, 8, 3, padding=1), FiLMGenerator(3, 8)
        self.group = NormFiLM(2, 8, gamma_offset=1, activation="mish", film_position="post")
        self.batch = BatchNormFiLM(8, activation="leaky_relu")
        self.channel, last = LayerNormFiLM(8, activation="gelu"), RMSNormFiLM if rms else LayerNormFiLM
        self.last = last(8, activation="gelu_tanh")
        self.picture = LayerNormFiLM(8, channel_dim=1, activation="tanh")

    def forward(self, image, metadata):
        gamma, beta = self.generator(metadata)
        x = self.batch(self.group(self.first(image), gamma, beta), gamma, beta)
        x = norm_film(x, "l2", gamma=gamma, activation="sigmoid")
        x = self.picture(x, None, beta).flatten(2).transpose(1, 2)
        return self.last(self.channel(x, gamma, beta), gamma[:, None], None)


ARGS = torch.randn(2, 1, 12, 16), torch.randn(2, 3)


def names_in(program):
    return {str(n.target) for n in program.graph.nodes if n.op == "call_function" and n.target is not operator.getitem}


def test_a_layer_is_exported_strictly():
    layer = NormFiLM(2, 8)
    x, gamma = torch.randn(2, 8, 5), torch.randn(2, 8)
    program = torch.export.export(layer, (x, gamma, gamma), strict=True)
    assert all(name.startswith("aten.") for name in names_in(program)), names_in(program)
    torch.testing.assert_close(program.module()(x, gamma, gamma), layer(x, gamma, gamma))


def test_export_has_standard_operators():
    net = Net().eval()
    batch, height = torch.export.Dim("batch", min=2), torch.export.Dim("height", min=2)
    program = torch.export.export(net, ARGS, dynamic_shapes=({0: batch, 2: height}, {0: batch}))
    assert all(name.startswith("aten.") for name in names_in(program)), names_in(program)
    assert {"aten.group_norm.default", "aten.layer_norm.default", "aten.mish.default"} <= names_in(program)
    more = torch.randn(5, 1, 9, 16), torch.randn(5, 3)
    torch.testing.assert_close(program.module()(*more), net(*more), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_in_training_is_exported_with_its_statistics():
    layer = BatchNormFiLM(8)
    x, gamma = torch.randn(4, 8, 5), torch.randn(4, 8)
    program = torch.export.export(layer, (x, gamma, gamma)).module()
    expected = layer(x, gamma, gamma)
    torch.testing.assert_close(program(x, gamma, gamma), expected)
    assert program.running_mean.abs().max() > 0


def test_a_pinned_backend_stays_in_the_exported_graph():
    class Pinned(nn.Module):
        def forward(self, x):
            return norm_film(x, "rms", backend="vendor")

    assert any(name.startswith("film_kernels.norm_film") for name in names_in(torch.export.export(Pinned(), ARGS[:1])))


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_runs_elsewhere(tmp_path, dynamo):
    net, path = Net(rms=dynamo).eval(), tmp_path / "net.onnx"  # the older exporter does not know rms_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, ARGS, path, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (t.numpy() for t in ARGS), strict=True)))
    torch.testing.assert_close(torch.from_numpy(found), net(*ARGS).detach(), rtol=1e-3, atol=1e-4)
