"""How many kernels a call starts on a GPU, counted without one."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode

_WITHOUT_A_KERNEL = ("empty", "new_empty", "detach", "as_strided")  # what PyTorch's operators of these names begin with


class LibraryCalls(TorchDispatchMode):
    """Counts PyTorch's operators that start a kernel; of a convolution's backward, each gradient as one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if func.namespace == "aten" and not func.is_view and not name.startswith(_WITHOUT_A_KERNEL):
            gradients = sum(args[-1]) if name == "convolution_backward" else 1
            self.names += [name] * gradients
        return func(*args, **(kwargs or {}))


def library_calls(call: Callable[[], object]) -> list[str]:
    """The names of PyTorch's operators that start kernels in `call`, in their order."""
    with LibraryCalls() as seen:
        call()
    return seen.names
