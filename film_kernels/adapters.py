"""`FusedFiLM` under adapters (LoRA and its kin) of the package peft.

Such an adapter wraps a layer, adds something to the layer's output, and makes layers of its own as `type(layer)(...)`.
Both are right for a convolution and wrong for a layer whose output comes after activation and FiLM. So, as long as an
adapter has it as `base_layer`, a fused layer is the convolution alone, and activation and FiLM follow the adapter; when
the adapter is merged or unloaded the layer goes back into the model and is the fused one again. PyTorch tells of both
moments by a hook that sees each module that is put into another.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from . import scripted

_convolution_of: dict[type[nn.Module], type[nn.Module]] = {}  # fused class -> class while it is lent to an adapter
_fused_of: dict[type[nn.Module], type[nn.Module]] = {}  # the other way round


class _Lent(nn.modules.conv._ConvNd):
    """The convolution alone. gamma and beta, which an adapter passes on, are for what follows the adapter."""

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        return self._conv_forward(x, self.weight, self.bias)  # type: ignore[operator]  # the next base's


class LentConv1d(_Lent, nn.Conv1d):
    """A `FusedFiLM1d` while an adapter has it, and what the adapter makes as `type(base_layer)(...)`."""


class LentConv2d(_Lent, nn.Conv2d):
    """A `FusedFiLM` while an adapter has it, and what the adapter makes as `type(base_layer)(...)`."""


def lend(fused: type[nn.Module], convolution: type[nn.Module]) -> None:
    """From now on layers of the class `fused` are of the class `convolution` while an adapter has them."""
    _convolution_of[fused], _fused_of[convolution] = convolution, fused


def _on_registration(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Turns a fused layer into its convolution where an adapter takes it, and back where it is put elsewhere."""
    if name == "base_layer" and _is_adapter(parent):
        if _film_follows in layer._forward_hooks.values():
            raise TypeError(
                "an adapter around an adapter of a fused layer: FiLM could not follow both; merge one first"
            )
        if isinstance(layer, tuple(_convolution_of)):
            if type(layer) not in _convolution_of:
                raise TypeError(
                    f"{type(layer).__name__} cannot be the base layer of an adapter: of a class derived from a fused "
                    "layer nobody knows what comes before FiLM; write nn.Conv2d, activation and FiLM, and let "
                    "film_kernels.fuse(model) join them"
                )
            layer.__class__ = _convolution_of[type(layer)]
            parent.register_forward_hook(_film_follows, with_kwargs=True)
    elif type(layer) in _fused_of and hasattr(layer, "film_position"):  # not one of the adapter's own
        layer.__class__ = _fused_of[type(layer)]


def _is_adapter(module: nn.Module) -> bool:
    peft = sys.modules.get("peft.tuners.tuners_utils")
    return peft is not None and isinstance(module, peft.BaseTunerLayer)


def _film_follows(adapter: Any, args: tuple[Any, ...], kwargs: dict[str, Any], z: Tensor) -> Tensor:
    """Activation and FiLM of an adapter's output."""
    given = dict(zip(("x", "gamma", "beta"), args, strict=False)) | kwargs
    layer = adapter.base_layer
    return scripted.activation_and_film(
        z, given["x"].dim() == len(layer.kernel_size) + 1, given.get("gamma"), given.get("beta"),
        layer.activation, layer.negative_slope, layer.film_position, layer.gamma_offset,
    )  # fmt: skip


register_module_module_registration_hook(_on_registration)
