"""DistributedDataParallel and FSDP2, two gloo processes on this machine: gradients are those of a single process, and
BatchNormFiLM has the statistics of its own process, as nn.BatchNorm2d."""

from __future__ import annotations

import atexit
import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from film_kernels import BatchNormFiLM, FiLMGenerator, FusedFiLM, NormFiLM, RMSNormFiLM, film, fuse
from tests.helpers.conversion.equality import counted_calls, without_a_judge
from tests.helpers.spawning import run_together

WAYS = ("ddp", "fsdp")


class Layers(nn.Module):
    """With the package's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = FusedFiLM(3, 8, 3, padding=1), FusedFiLM(8, 6, 3, film_position="pre")
        self.generators = nn.ModuleList((FiLMGenerator(5, 8), FiLMGenerator(5, 6)))

    def forward(self, x, words):
        x = self.conv(x, *self.generators[0](words))
        return self.second(x, *self.generators[1](words))


class Written(nn.Module):
    """As everybody writes it, for `fuse`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3)
        self.generators = nn.ModuleList((FiLMGenerator(5, 8), FiLMGenerator(5, 6)))

    def forward(self, x, words):
        x = film(torch.relu(self.conv(x)), *self.generators[0](words))
        return torch.relu(film(self.second(x), *self.generators[1](words)))


class Norms(nn.Module):
    """With its layers of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.generator = nn.Conv2d(3, 8, 3), FiLMGenerator(5, 8)
        self.norm, self.tokens = NormFiLM(2, 8, gamma_offset=1), RMSNormFiLM(8, activation="gelu")

    def forward(self, x, words):
        gamma, beta = self.generator(words)
        return self.tokens(self.norm(self.conv(x), gamma, beta).flatten(2).mT, gamma, beta)


MODELS = {"layer": Layers, "fuse": Written, "norms": Norms}


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind]()


def sharded_apart(kind: str, model: nn.Module) -> tuple[nn.Module, ...]:
    if kind == "layer":
        return (*model.generators, model.conv, model.second)
    # A hook of FSDP's between a convolution and its FiLM keeps fuse from joining them.
    return () if kind == "fuse" else (model.norm, model.tokens)


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
    for kind in MODELS:
        model = make(kind)
        for way in WAYS:
            one = copy.deepcopy(model)
            one = fuse(one) if kind == "fuse" else one
            if way == "ddp":
                one = nn.parallel.DistributedDataParallel(one)
            else:
                for part in sharded_apart(kind, one):
                    fully_shard(part, mesh=mesh)
                fully_shard(one, mesh=mesh)
            with counted_calls() as calls, without_a_judge():
                results[kind, way] = gradients(one, x, words, steps=2)
            assert len(calls) == 4, (kind, calls)  # two operators, twice; of `fuse` they are made by it
    layers = [nn.parallel.DistributedDataParallel(m) for m in (BatchNormFiLM(3, activation="none"), nn.BatchNorm2d(3))]
    for layer in layers:
        for _ in range(2):
            layer(x).square().sum().backward()
    results["batch"] = [{**m.module.state_dict(), "grad": m.module.weight.grad} for m in layers]
    if rank == 0:
        torch.save(results, folder / "results")


def end_badly(rank: int) -> None:
    """Aborts when the interpreter shuts down, as a thread that calls into it then does."""
    atexit.register(os.abort)


def fail(rank: int) -> None:
    raise RuntimeError("one of them failed")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    run_together(work, 2, folder, folder)
    return torch.load(folder / "results")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_one_process(results, kind, way):
    expected = {name: g / 2 for name, g in gradients(make(kind), *batch()).items()}  # averaged over the processes
    torch.testing.assert_close(results[kind, way], expected, rtol=1e-4, atol=1e-4)


def test_a_batch_norm_is_that_of_pytorch(results):
    torch.testing.assert_close(*results["batch"], rtol=1e-4, atol=1e-4)


def test_what_a_thread_of_the_group_would_call_at_the_end_cannot_abort_a_process(tmp_path):
    run_together(end_badly, 2, tmp_path)


def test_a_process_that_fails_is_reported(tmp_path):
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="one of them failed"):
        run_together(fail, 1, tmp_path)
