"""Whether a model's outputs and gradients are what they were, by the rule of `cases.py`."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from film_kernels import arguments, fuse, norm_arguments, repeated
from film_kernels.conversion import swap
from film_kernels.prepared import Prepared
from film_kernels.problems import conv_film, norm_film


def fused_copy(model: nn.Module) -> nn.Module:
    """A fused model of its own, to be compared with `model`, which stays as it is."""
    return fuse(copy.deepcopy(model))


def outputs_and_gradients(model: nn.Module, inputs, seed: int = 0) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """The model's output tensors, and the gradients of its floating inputs and parameters for a random gradient."""
    leaves = [t.detach().clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    model.zero_grad()
    found = model(*leaves)
    found = [found] if isinstance(found, Tensor) else list(found)
    generator = torch.Generator().manual_seed(seed)
    total = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in found)
    total.backward()
    gradients = {str(i): leaf.grad for i, leaf in enumerate(leaves)}
    for name, p in model.named_parameters():  # torch.compile puts a name in front
        gradients[name.removeprefix("_orig_mod.")] = None if p.grad is None else p.grad.clone()
    return [y.detach() for y in found], gradients


def assert_equal(model: nn.Module, fused: nn.Module, inputs) -> None:
    """The same in float64, but for the rounding of sums."""
    outputs, gradients = outputs_and_gradients(model, inputs)
    others, other_gradients = outputs_and_gradients(fused, inputs)
    torch.testing.assert_close(others, outputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-8, atol=1e-8)


def assert_as_good(model: nn.Module, fused: nn.Module, draws) -> None:
    """At most twice as far from the result in float64 as the model itself, all outputs and all gradients together, each
    in parts of its own size. `draws` are several tuples of inputs."""
    exact = copy.deepcopy(model).double()
    ours, plain, least = ([0.0, 0.0] for _ in range(3))
    for seed, inputs in enumerate(draws):
        better = outputs_and_gradients(exact, [t.double() if t.is_floating_point() else t for t in inputs], seed)
        results = [outputs_and_gradients(m, inputs, seed) for m in (fused, model)]
        for i in (0, 1):  # outputs, gradients
            for key in better[1] if i else range(len(better[0])):
                truth = better[i][key]
                if truth is None:
                    assert results[0][i][key] is None
                    continue
                size = truth.norm().clamp_min(1e-30)
                for total, result in zip((ours, plain), results, strict=True):
                    assert result[i][key].dtype == inputs[0].dtype
                    total[i] += float(((result[i][key].double() - truth).norm() / size) ** 2)
                least[i] += (torch.finfo(inputs[0].dtype).eps / 2) ** 2
    for i, name in enumerate(("outputs", "gradients")):
        assert ours[i] <= 4 * max(plain[i], least[i]), (name, ours[i] ** 0.5, plain[i] ** 0.5)


def without_a_judge() -> Any:
    """A context in which every site that can be fused is, of whatever size."""
    return mock.patch.object(swap, "judged", lambda match, *_, **how: match)


@contextlib.contextmanager
def counted_calls() -> Iterator[list[str]]:
    """The activation and FiLM's position of every fused call, behind the norm's name where it is norm_film's. They are
    counted where the front doors prepare their arguments, and where a call is made that was prepared at its first, or
    like one before."""
    calls: list[str] = []
    names = ("norm", "activation", "film_position")

    def counting(prepare, options_of):
        def counted(tensors, options, *others):
            given = dict(zip(options_of, options, strict=True))
            calls.append(" ".join(given[name] for name in names if name in given))
            return prepare(tensors, options, *others)

        return counted

    def once(prepared, *tensors):
        before = len(calls)
        y = call(prepared, *tensors)
        given = inspect.signature(prepared._front).bind_partial(**prepared._options)
        given.apply_defaults()
        calls[before:] = [" ".join(given.arguments[name] for name in names if name in given.arguments)]
        return y

    def again(front, options_of):
        def counted(tensors, options):
            before, given = len(calls), dict(zip(options_of, options, strict=True))
            try:
                y = front(tensors, options)
            except Exception:  # as a checkpoint ends a call that it makes once more, when it has what it needs
                calls[before:] = [" ".join(given[name] for name in names if name in given)]
                raise
            calls[before:] = [] if y is None else [" ".join(given[name] for name in names if name in given)]
            return y

        return counted

    call = Prepared.__call__
    with (
        mock.patch.object(arguments, "prepare", counting(arguments.prepare, conv_film.OPTIONS)),
        mock.patch.object(norm_arguments, "prepare", counting(norm_arguments.prepare, norm_film.OPTIONS)),
        mock.patch.object(repeated, "conv_film", again(repeated.conv_film, conv_film.OPTIONS)),
        mock.patch.object(repeated, "norm_film", again(repeated.norm_film, norm_film.OPTIONS)),
        mock.patch.object(Prepared, "__call__", once),
    ):
        yield calls
