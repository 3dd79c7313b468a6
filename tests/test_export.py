"""Graphs for somebody else hold standard operators: torch.export, and ONNX in onnxruntime."""

from __future__ import annotations

import copy
import operator
import warnings

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from film_kernels import FiLMGenerator, FusedFiLM, conv_film, fuse

pytestmark = pytest.mark.usefixtures("one_thread")


class UNet(nn.Module):
    """Down, up and a skip connection, with FiLM from metadata at each level."""

    def __init__(self) -> None:
        super().__init__()
        self.down = FusedFiLM(1, 4, 3, padding=1, activation="leaky_relu", gamma_offset=1)
        self.bottom = FusedFiLM(4, 8, 3, padding="same", film_position="pre", activation="silu")
        self.up = FusedFiLM(12, 4, 3, padding=1, padding_mode="reflect")
        self.head = nn.Conv2d(4, 1, 1)
        self.film = nn.ModuleList(FiLMGenerator(3, channels) for channels in (4, 8, 4))

    def forward(self, image, metadata):
        fine = self.down(image, *self.film[0](metadata))
        coarse = self.bottom(F.avg_pool2d(fine, 2), *self.film[1](metadata))
        both = torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], 1)
        return self.head(self.up(both, *self.film[2](metadata)))


ARGS = torch.randn(2, 1, 12, 16), torch.randn(2, 3)


def names_in(program):
    return {str(n.target) for n in program.graph.nodes if n.op == "call_function" and n.target is not operator.getitem}


@pytest.mark.parametrize("strict", [False, True])
def test_export_has_standard_operators(strict):
    net = UNet().eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, ARGS, dynamic_shapes=({0: batch}, {0: batch}), strict=strict)
    assert all(name.startswith("aten.") for name in names_in(program)), names_in(program)
    assert {"aten.conv2d.default", "aten.leaky_relu.default", "aten.silu.default"} <= names_in(program)
    more = torch.randn(5, 1, 12, 16), torch.randn(5, 3)
    torch.testing.assert_close(program.module()(*more), net(*more), rtol=1e-4, atol=1e-5)


def test_a_pinned_backend_stays_in_the_exported_graph():
    layer = FusedFiLM(1, 4, 3)

    class Pinned(nn.Module):
        def forward(self, x):
            return conv_film(x, layer.weight, backend="vendor")

    assert any(name.startswith("film_kernels.conv_film") for name in names_in(torch.export.export(Pinned(), ARGS[:1])))


@pytest.mark.parametrize("fused", [False, True])
def test_onnx_runs_elsewhere(tmp_path, fused):
    net = UNet().eval()
    path = tmp_path / "unet.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(fuse(copy.deepcopy(net)) if fused else net, ARGS, path, dynamo=not fused, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (t.numpy() for t in ARGS), strict=True)))
    torch.testing.assert_close(torch.from_numpy(found), net(*ARGS).detach(), rtol=1e-3, atol=1e-4)
