"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..problems import Problem

Gradients = tuple[Tensor | None, ...]  # of the operator's tensors, in their order
Backward = Callable[[Tensor, Tensor, Any, Sequence[bool]], Gradients]  # (grad, kept, tensors, wanted)
# (y, kept, copies of the others) from the operator's tensors and those of them that are not saved
ForBackward = Callable[[Any, Any], tuple[Tensor, Tensor, Sequence[Tensor | None]]]

AS_ROWS: tuple[Sequence[int], Sequence[int]] = ((), ())  # the sizes of gamma's and beta's gradients: (N, K)


def asked_for(results: Sequence[Tensor], wanted: Sequence[bool]) -> Gradients:
    """The gradients, where a compiled operator gives an empty tensor for one that is not wanted."""
    return tuple(result if asked else None for result, asked in zip(results, wanted, strict=True))


class Kernels:
    """One backend's kernels for one operator. The tensors come checked, gamma and beta as (N, K) or None.

    `kept` is what `forward` keeps for backward beside the arguments; its layout is the backend's own business. Nothing
    here knows of autograd.
    """

    record: type  # the class of the problems that they are for
    is_plain = False  # whether autograd itself differentiates what they do, so that nothing is kept

    def why_not(self, problem: Any) -> str | None:
        """Why `problem` cannot be served, or None. Asked only where the backend is available."""
        raise NotImplementedError

    def is_slow(self, problem: Any) -> bool:
        """Whether measurements say that a later backend in the list is faster for this kind of problem."""
        return False

    def kept_like(self, problem: Any) -> Tensor:
        """An empty tensor of the shape, dtype and strides of `kept`."""
        raise NotImplementedError

    def reads(self, problem: Any, wanted: Sequence[bool]) -> tuple[bool, ...]:
        """Which of the tensors that are not saved (`Operator.others`) `backward` reads for these gradients. What it
        does not read it may get as None."""
        raise NotImplementedError

    def forward(self, problem: Any, tensors: Any, for_backward: bool) -> tuple[Tensor, Tensor | None]:
        """(y, kept) of the operator's tensors, in their order; `kept` is None unless `for_backward`."""
        raise NotImplementedError

    def prepared(self, problem: Any) -> Callable[..., Tensor] | None:
        """`forward` for a call without a backward, as a function of the tensors with all else worked out; gamma and
        beta may have ones beside their channels, and one row for all samples. None where there is no shorter way."""
        return None

    def forward_and_copy(
        self, problem: Any, tensors: Any, copied: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        """(y, kept, copies of `copied`): `forward` for a backward that will read those tensors, which nobody saves."""
        y, kept = self.forward(problem, tensors, True)
        assert kept is not None
        return y, kept, [None if tensor is None else tensor.clone() for tensor in copied]

    def forward_for_backward(
        self, problem: Any, read: Sequence[bool], tensors: Any, others: Any
    ) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        """(y, kept, copies) for a backward that will read those of `others`, which nobody saves, that `read` names."""
        if True in read:
            copied = [tensor if asked else None for tensor, asked in zip(others, read, strict=True)]
            return self.forward_and_copy(problem, tensors, copied)
        y, kept = self.forward(problem, tensors, True)
        assert kept is not None
        return y, kept, (None,) * len(read)

    def prepared_for_backward(self, problem: Any, read: Sequence[bool]) -> ForBackward | None:
        """`forward_for_backward` as a function of its other arguments, with all else worked out; gamma and beta may be
        as for `prepared`. None where there is no shorter way."""
        return None

    def backward(self, problem: Any, grad: Tensor, kept: Tensor, tensors: Any, wanted: Sequence[bool]) -> Gradients:
        """The gradients of the tensors, None where `wanted` says so."""
        raise NotImplementedError

    def prepared_backward(self, problem: Any, sizes: Sequence[Sequence[int]] = AS_ROWS) -> Backward | None:
        """`backward` as a function of its other arguments, with all else worked out, that gives gamma's and beta's
        gradients in these sizes, () for (N, K). None where there is no shorter way."""
        return None


class Backend:
    """A library of kernels, which serve some problems of some operators."""

    name: str
    kernels: tuple[Kernels, ...]  # one for each operator that it serves

    def __init__(self) -> None:
        # not when it is first asked for: that may be by torch.compile, which does not trace every `cached_property`
        self._by_record: dict[type, Kernels] = {kernels.record: kernels for kernels in self.kernels}

    def unavailable(self) -> str | None:
        """Why nothing can be served on this machine, or None."""
        raise NotImplementedError

    def check_settings(self) -> None:
        """Raise ValueError where the environment asks of this backend what it does not have: to go on silently with
        another backend would hide the mistake."""

    def why_not(self, problem: Problem) -> str | None:
        """Why `problem`, of any kind, cannot be served, or None. Asked only where `unavailable` is None."""
        if type(problem) not in self._by_record:
            return "it has no kernels for this operator"
        return self.of(problem).why_not(problem)

    def of(self, problem: Problem) -> Kernels:
        """The kernels for that kind of problem, where `why_not` is None."""
        return self._by_record[type(problem)]
