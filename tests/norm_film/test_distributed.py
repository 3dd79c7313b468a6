"""DistributedDataParallel and FSDP2, two gloo processes on this machine: gradients are those of a single process, and
BatchNormFiLM has the statistics of its own process, as nn.BatchNorm2d."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from film_kernels import BatchNormFiLM, FiLMGenerator, NormFiLM, RMSNormFiLM
from tests.helpers.spawning import run_together

WAYS = ("ddp", "fsdp")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.generator = nn.Conv2d(3, 8, 3), FiLMGenerator(5, 8)
        self.norm, self.tokens = NormFiLM(2, 8, gamma_offset=1), RMSNormFiLM(8, activation="gelu")

    def forward(self, x, words):
        gamma, beta = self.generator(words)
        return self.tokens(self.norm(self.conv(x), gamma, beta).flatten(2).mT, gamma, beta)


def make() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 9, 8, generator=generator), torch.randn(4, 5, generator=generator)


def gradients(model: nn.Module, x, words, steps: int = 1) -> dict[str, torch.Tensor]:
    """After a second step, for what is set up only in the first."""
    for _ in range(steps):
        model.zero_grad()
        model(x, words).square().sum().backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g.clone() for name, g in found.items()}


def work(rank: int, folder: Path) -> None:
    """One of two processes; rank 0 writes down what came out."""
    mesh = dist.init_device_mesh("cpu", (2,))
    x, words = (t[2 * rank : 2 * rank + 2] for t in batch())
    results = {}
    for way in WAYS:
        model = copy.deepcopy(make())
        if way == "ddp":
            model = nn.parallel.DistributedDataParallel(model)
        else:
            for part in (model.norm, model.tokens):
                fully_shard(part, mesh=mesh)
            fully_shard(model, mesh=mesh)
        results[way] = gradients(model, x, words, steps=2)
    layers = [nn.parallel.DistributedDataParallel(m) for m in (BatchNormFiLM(3, activation="none"), nn.BatchNorm2d(3))]
    for layer in layers:
        for _ in range(2):
            layer(x).square().sum().backward()
    results["batch"] = [{**m.module.state_dict(), "grad": m.module.weight.grad} for m in layers]
    if rank == 0:
        torch.save(results, folder / "results")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    run_together(work, 2, folder, folder)
    return torch.load(folder / "results")


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_one_process(results, way):
    expected = {name: g / 2 for name, g in gradients(make(), *batch()).items()}  # averaged over the processes
    torch.testing.assert_close(results[way], expected, rtol=1e-4, atol=1e-4)


def test_a_batch_norm_is_that_of_pytorch(results):
    torch.testing.assert_close(*results["batch"], rtol=1e-4, atol=1e-4)
