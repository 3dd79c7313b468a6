"""What a user may do with a model, and the steps that are timed of what came of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import film_kernels

from .model_zoo import Inputs, Model, tensors

INFERENCE, TRAINING = KINDS = ("inference", "training")
# A result may be off by this part of its size, and a gradient by it and by a part of all gradients' size: some, as of a
# bias in front of a norm, are rounding errors alone.
_TOLERANCE, _OF_ALL = 1e-3, 1e-4


@dataclass(frozen=True)
class Way:
    """`of(model)` gives the model in this way. It may change the model."""

    name: str
    of: Callable[[nn.Module], nn.Module]
    compiled: bool = False  # by torch.compile, which takes up to minutes
    inference_only: bool = False


def _compiled(backend: str) -> Callable[[nn.Module], nn.Module]:
    def of(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend=backend)  # type: ignore[return-value]

    return of


def _fused(**options: Any) -> Callable[[nn.Module], nn.Module]:
    return partial(film_kernels.fuse, **options)


PLAIN, FUSE = "plain", "fuse"
WAYS = {
    way.name: way
    for way in (
        Way(PLAIN, lambda model: model),
        Way(FUSE, _fused()),
        Way("fuse(convolutions=True)", _fused(convolutions=True)),
        Way("fuse(convolutions=True, frozen=True)", _fused(convolutions=True, frozen=True), inference_only=True),
        Way("torch.compile", _compiled("inductor"), compiled=True),
        Way('torch.compile(backend="film_kernels")', _compiled("film_kernels"), compiled=True),
    )
}
EAGER = tuple(name for name, way in WAYS.items() if not way.compiled)
Step = Callable[[], Tensor]


def modules(model: Model, module: nn.Module, names: tuple[str, ...], kind: str) -> dict[str, nn.Module | str]:
    """By way: `module` in it, in the mode for `kind`, or why it is not there. Each has parameters of its own."""
    found: dict[str, nn.Module | str] = {}
    for name in names:
        way = WAYS[name]
        if way.inference_only and kind == TRAINING:
            found[name] = "it is for inference"
        else:
            found[name] = way.of(copy.deepcopy(module).train(kind == TRAINING))
    return found


def step(model: Model, module: nn.Module, inputs: Inputs, kind: str) -> Step:
    """A call without autograd, or a forward and backward that leaves gradients in the parameters. What is random in it
    is the same at every call. Returns the model's result."""

    def inference() -> Tensor:
        with torch.no_grad():
            return model.call(module, inputs)

    def training() -> Tensor:
        torch.manual_seed(0)
        module.zero_grad()
        y = model.call(module, inputs)
        loss(y).backward()
        return y.detach()

    return inference if kind == INFERENCE else training


def loss(y: Tensor) -> Tensor:
    """A number with a gradient that differs from element to element, and is 0 nowhere where the result is not."""
    return y.square().mean()


def results(module: nn.Module, of: Step, kind: str) -> dict[str, Tensor]:
    """Of one step: the result and, in training, the gradients by the name of the parameter."""
    found = {"result": of().clone()}
    if kind == TRAINING:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[name.removeprefix("_orig_mod.")] = parameter.grad.clone()
    return found


def complaint(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """What is wrong with the results of a step, where plain PyTorch's are `expected`; None where nothing is."""
    if found.keys() != expected.keys():
        return f"other parameters have gradients: {sorted(found.keys() ^ expected.keys())}"
    norms = {name: float(t.double().norm()) for name, t in expected.items()}
    of_all = max((size for name, size in norms.items() if name != "result"), default=0.0)
    for name, t in found.items():
        off = float((t.double() - expected[name].double()).norm())
        allowed = _TOLERANCE * (norms[name] + (0.0 if name == "result" else _OF_ALL / _TOLERANCE * of_all))
        if not off <= allowed:  # nor is NaN
            return f"{name} is off by {off / (norms[name] or 1.0):.1e} of its size"
    return None


def known(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Parameters, buffers and inputs: what is there whether autograd keeps it or not."""
    return [*module.parameters(), *module.buffers(), *tensors(inputs)]


def forward(model: Model, module: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    """A call that autograd records."""
    return partial(model.call, module, inputs)


def randomly_as_eager() -> None:
    """Dropout of Inductor draws as eager PyTorch does, so that results can be compared."""
    inductor: Any = torch._inductor.config
    inductor.fallback_random = True
