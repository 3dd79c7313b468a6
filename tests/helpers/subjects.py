"""The operators as tests see them that hold for each: a small call with all five tensors, by the package, in plain
PyTorch and by the registered operator."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import film_kernels
from film_kernels import operators
from tests.helpers import cases, norm_cases
from tests.helpers.cases import EMULATED, EXPECTED, INTERPRETED
from tests.helpers.expected_refusals import words_of_refusal

NAMES = ("input", "weight", "bias", "gamma", "beta")


class Subject(abc.ABC):
    """Options that may be given to its methods: activation, film_position and gamma_offset."""

    operator: operators.Operator
    backends: Sequence[str]  # those that serve it, by their names for the fixture `backend`
    keeping: Sequence[str]  # of them, those whose backward reads what their forward kept
    case: Any  # of cases.py or norm_cases.py

    @abc.abstractmethod
    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Those of NAMES."""

    @abc.abstractmethod
    def ours(self, tensors: Sequence[Tensor], backend: str | None = None, **options: Any) -> Tensor: ...

    @abc.abstractmethod
    def plain(self, tensors: Sequence[Tensor], **options: Any) -> Tensor: ...

    @abc.abstractmethod
    def registered_options(self, case: Any) -> dict[str, Any]:
        """Of the registered operator, by name, but for what both operators have."""

    def refusal(self, backend: str, **options: Any) -> str | None:
        """What a backend says that does not serve this, or None."""
        return None

    def leaves(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [t.requires_grad_() for t in self.tensors(dtype)]

    def arguments(self, tensors: Sequence[Tensor], backend: str = "cpu", **options: Any) -> dict[str, Any]:
        """Those of the registered operators, by name and in their order."""
        case = replace(self.case, **options)
        given = {
            **self.registered_options(case), "activation": case.activation, "negative_slope": 0.1,
            "film_position": case.film_position, "gamma_offset": case.gamma_offset,
        }  # fmt: skip
        named = {name: given[name] for name in self.operator.option_names}
        return {**dict(zip(NAMES, tensors, strict=True)), **named, "backend": backend}

    @property
    def registered(self) -> Any:
        return getattr(torch.ops.film_kernels, self.operator.name)

    @property
    def registered_backward(self) -> Any:
        return getattr(torch.ops.film_kernels, f"{self.operator.name}_backward")


class ConvSubject(Subject):
    operator = operators.CONV_FILM

    def __init__(
        self, activation: str = "relu", backends: Sequence[str] = (*EXPECTED, *INTERPRETED, *EMULATED)
    ) -> None:
        self.backends = backends
        self.keeping = tuple(name for name in backends if name != "reference")
        self.case = cases.Case("subject", (2, 3, 8, 8), (16, 3, 3, 3), padding=1, activation=activation)

    def tensors(self, dtype=torch.float32):
        return cases.tensors_of(self.case, dtype, seed=3)

    def ours(self, tensors, backend=None, **options):
        case = replace(self.case, **options)
        return film_kernels.conv_film(*tensors, *case.geometry, **case.options, backend=backend)

    def plain(self, tensors, activation=None, film_position="post", gamma_offset=0.0):
        x, w, b, gamma, beta = tensors
        z, gamma, beta = F.conv2d(x, w, b, padding=1), gamma[:, :, None, None] + gamma_offset, beta[:, :, None, None]
        act = norm_cases.FUNCTIONS[activation or self.case.activation]
        return gamma * act(z) + beta if film_position == "post" else act(gamma * z + beta)

    def registered_options(self, case):
        sizes = ("stride", "padding_before", "padding_after", "dilation")
        return {**dict.fromkeys(sizes, (1, 1)), "groups": 1, "keep": case.keep}

    def refusal(self, backend, **options):
        return words_of_refusal(backend, replace(self.case, **options))

    def __str__(self):
        return "conv_film" if self.case.activation == "relu" else f"conv_film {self.case.activation}"


class NormSubject(Subject):
    operator = operators.NORM_FILM
    backends = norm_cases.SERVING
    keeping = tuple(name for name in backends if name != "reference")

    def __init__(self, norm: str, num_groups: int | None = None) -> None:
        self.case = norm_cases.Case((2, 6, 5, 7), norm, num_groups)

    def tensors(self, dtype=torch.float32):
        return norm_cases.tensors_of(replace(self.case, dtype=dtype), seed=3)

    def ours(self, tensors, backend=None, **options):
        return norm_cases.ours(replace(self.case, **options), tensors, backend)

    def plain(self, tensors, **options):
        return norm_cases.plain(replace(self.case, **options), tensors)

    def registered_options(self, case):
        return {name: getattr(case, name) for name in ("norm", "num_groups", "eps", "channel_dim")}

    def __str__(self):
        return f"norm_film {self.case.norm}"


CONV = ConvSubject()
GROUP = NormSubject("group", 2)
SMOOTH = ConvSubject("silu", ("cpu", "vendor"))  # which keeps z
BOTH = (CONV, GROUP)  # one call of each operator
OTHER_NORMS = tuple(map(NormSubject, ("batch", "channel", "rms", "l2")))


def with_backends(subjects: Iterable[Subject] = BOTH, keeping: bool = False) -> pytest.MarkDecorator:
    """Runs a test, which takes `subject` and `backend`, for each subject with each backend that serves it; or with
    those backends that keep something for backward."""
    pairs = [
        pytest.param(subject, backend, id=f"{subject}-{backend}")
        for subject in subjects
        for backend in (subject.keeping if keeping else subject.backends)
    ]
    return pytest.mark.parametrize(("subject", "backend"), pairs, indirect=["backend"])


each_operator = pytest.mark.parametrize("subject", BOTH, ids=str)
