"""`python -m bench.models`: whole models as their packages have them, plain and fused, on the CPU.

Random weights, sizes of a small but real use. Measured are inference and a training step (forward and backward),
interleaved in one process, and what autograd keeps between the two. The packages are those of requirements-models.txt.
Writes models.md into the folder of results.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import film_kernels
from examples.arguments import at_least

from . import machine
from .memory import kept_bytes
from .tables import table
from .timing import Rounds, interleaved

FILE = "models.md"
_CPU = torch.device("cpu")
_ROUNDS = Rounds(least=5, most=60)
_PLAIN = "plain"
Made = tuple[nn.Module, tuple[Any, ...]]  # a model and its inputs
# What a user may do with a model, by the name in the report. Each gets a copy of its own.
_WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    _PLAIN: lambda model: model,
    "fuse": film_kernels.fuse,
    "fuse(norms=False)": lambda model: film_kernels.fuse(model, norms=False),
}


@dataclass(frozen=True)
class Model:
    """A model and how it is called: the inputs, and the tensor in its result."""

    name: str
    sizes: str
    make: Callable[[], Made]
    result: Callable[[Any], Tensor]


def _unet(time: str, small: bool) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import UNet2DModel
    channels, size, batch = ((32, 64), 8, 1) if small else ((64, 128), 32, 4)
    model: Any = UNet2DModel(
        sample_size=size, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=channels,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, resnet_time_scale_shift=time,
    )  # fmt: skip
    return model, (torch.randn(batch, 3, size, size), torch.tensor(10))


def models(small: bool = False) -> list[Model]:
    """Those that are measured; with `small` of sizes that take no time."""
    sizes = "1x3x8x8, 32 and 64 channels" if small else "4x3x32x32, 64 and 128 channels"
    return [
        Model(f"diffusers UNet2DModel, {time}", sizes, partial(_unet, time, small), attrgetter("sample"))
        for time in ("scale_shift", "default")
    ]


@dataclass
class Found:
    """What was measured of one model: the sites, seconds by kind of step and way, and bytes by way."""

    fused: int
    sites: int
    seconds: dict[str, dict[str, float]]
    kept: dict[str, int]


def measure(model: Model, seconds: float, rounds: Rounds = _ROUNDS) -> Found:
    """Raises RuntimeError where a fused model gives another result than the plain one."""
    torch.manual_seed(0)
    module, inputs = model.make()
    sites = film_kernels.find_film(module, inputs, norms=True)
    ways = {name: way(copy.deepcopy(module)) for name, way in _WAYS.items()}
    found = Found(sum(site.fusable for site in sites), len(sites), {}, {})
    for kind in ("inference", "training"):
        steps: dict[str, Callable[[], Any]] = {
            name: _step(model, one.train(kind == "training"), inputs, kind) for name, one in ways.items()
        }
        expected = steps[_PLAIN]()
        for name, step in steps.items():
            step()  # captured now
            if not torch.allclose(step(), expected, rtol=1e-3, atol=1e-4):
                raise RuntimeError(f"{model.name}, {kind}: {name} gives another result than {_PLAIN}")
        times = interleaved(steps, _CPU, seconds / 2, rounds)
        found.seconds[kind] = {name: statistics.median(one) for name, one in times.items()}
    for name, one in ways.items():
        found.kept[name] = kept_bytes(partial(_forward, model, one, inputs), [*one.parameters(), *inputs])
    return found


def _forward(model: Model, module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    return model.result(module(*inputs))


def _step(model: Model, module: nn.Module, inputs: tuple[Any, ...], kind: str) -> Callable[[], Tensor]:
    def inference() -> Tensor:
        with torch.no_grad():
            return _forward(model, module, inputs)

    def training() -> Tensor:
        y = _forward(model, module, inputs)
        y.square().mean().backward()
        module.zero_grad()
        return y.detach()

    return inference if kind == "inference" else training


def report(found: dict[str, tuple[Model, Found]]) -> str:
    """In Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in machine.describe(_CPU).items())
    header = ["model", "sizes", "step", "plain, ms", *(f"plain / {name}" for name in _WAYS if name != _PLAIN)]
    rows = []
    for name, (model, one) in found.items():
        for kind, seconds in one.seconds.items():
            ratios = [f"{seconds[_PLAIN] / took:.2f}" for way, took in seconds.items() if way != _PLAIN]
            rows.append([name, model.sizes, kind, f"{seconds[_PLAIN] * 1e3:.3g}", *ratios])
        ratios = [f"{one.kept[_PLAIN] / kept:.2f}" for way, kept in one.kept.items() if way != _PLAIN]
        rows.append([name, model.sizes, "kept by autograd", f"{one.kept[_PLAIN] / 1e6:.3g} MB", *ratios])
    sites = [f"- {name}: {one.fused} of {one.sites} sites are fused" for name, (_, one) in found.items()]
    parts = ["# Whole models, plain and fused", f"{about}.", "\n".join(sites), table(header, rows)]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description="Times whole models.")
    parser.add_argument("--seconds", type=at_least(0), default=60, help="for each model (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="sizes that take no time")
    parser.add_argument("--out", type=Path, help="a folder (default: bench/results/<device>)")
    options = parser.parse_args(argv)
    out = options.out or Path("bench/results") / machine.folder_name(_CPU)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    text = report({model.name: (model, measure(model, options.seconds)) for model in models(options.small)})
    (out / FILE).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
