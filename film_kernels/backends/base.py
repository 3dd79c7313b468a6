"""What a backend is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..problem import Problem

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Backend:
    """Serves some Problems with three kernels: `forward`, `grad_input`, `grad_weight`.

    `gamma` and `beta` come as (N, K) or None. `kept` is what `forward` keeps for backward beside the arguments;
    its layout is the backend's own business. Nothing here knows of autograd.
    """

    name: str

    def unavailable(self) -> str | None:
        """Why nothing can be served on this machine, or None."""
        raise NotImplementedError

    def check_settings(self) -> None:
        """Raise ValueError where the environment asks of this backend what it does not have: to go on silently with
        another backend would hide the mistake."""

    def why_not(self, problem: Problem) -> str | None:
        """Why `problem` cannot be served, or None. Asked only where `unavailable` is None."""
        raise NotImplementedError

    def is_slow(self, problem: Problem) -> bool:
        """Whether measurements say that a later backend in the list is faster for this kind of Problem."""
        return False

    def kept_like(self, problem: Problem) -> Tensor:
        """An empty tensor of the shape, dtype and strides of `kept`."""
        raise NotImplementedError

    def reads(self, problem: Problem, wanted: Sequence[bool]) -> tuple[bool, bool]:
        """Whether `backward`, for these of the five gradients, reads bias, and whether beta. What it does not read it
        may get as None."""
        return wanted[3], False  # dgamma = <W, U> + bias * sum u

    def forward(
        self,
        problem: Problem,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """(y, kept); `kept` is None unless `keep`."""
        raise NotImplementedError

    def grad_input(self, problem: Problem, grad: Tensor, kept: Tensor, weight: Tensor, gamma: Tensor | None) -> Tensor:
        """dx, of the input's shape, in its memory format."""
        raise NotImplementedError

    def grad_weight(
        self,
        problem: Problem,
        grad: Tensor,
        kept: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """(dW, db, dgamma, dbeta), None where `wanted` says so."""
        raise NotImplementedError

    def backward(
        self,
        problem: Problem,
        grad: Tensor,
        kept: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        wanted: Sequence[bool],
    ) -> Gradients:
        """The five gradients, None where `wanted` says so."""
        grad_input = self.grad_input(problem, grad, kept, weight, gamma) if wanted[0] else None
        if not any(wanted[1:]):
            return grad_input, None, None, None, None
        return grad_input, *self.grad_weight(problem, grad, kept, input, weight, bias, gamma, wanted[1:])
