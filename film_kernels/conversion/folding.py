"""What stands in a graph in place of a chain: scales, shifts and BatchNorms folded together, then one call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import ACTIVATIONS
from ..arguments import has_autocast
from ..functional import conv_film, norm_film
from ..norm_modules import rms_eps
from ..packed import conv_film_packed, remembered

Step = tuple[Any, ...]  # ("scale" | "shift" | "divide" | "subtract", factor) or ("batch_norm", mean, var, w, b, eps)
_ACTIVATION: Step = ("activation",)
_WRITTEN = {"scale": operator.mul, "divide": operator.truediv, "shift": operator.add, "subtract": operator.sub}
Rows = Tensor | float | None  # (N, K) or (1, K) or a number; None for nothing


def conv_steps_film(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    before: Sequence[Step],
    activation: str,
    negative_slope: float,
    after: Sequence[Step],
    film_position: str,
    keep: str,
    frozen: bool = False,
) -> Tensor:
    """`after(activation(before(convolution)))` by `film_kernels.conv_film`; where it is `frozen`, for inference, what
    is made of parameters is made once.

    Every step is `scale * v + shift` per channel, so the steps on either side of the activation compose to one such
    pair. With FiLM in front of the activation that pair is conv_film's gamma and beta. Otherwise what is in front is
    the same for all samples, and goes into weight and bias: `W' = scale * W`, `b' = scale * b + shift` (the folding
    of BatchNorm that `torch.nn.utils.fusion.fuse_conv_bn_weights` does once; here gradients go through it).

    Factors of half precision are composed in float32, and what comes out is rounded once. In float16 the product of
    two factors may be out of range where the values that they scale, one after the other, are not: so of its steps one
    scale and one shift go into weight and bias, as many into gamma and beta, and what follows is computed as written.
    """
    rank, dtype = weight.dim() - 2, _dtype_of(input)
    folded, taken, inside, pending = _parts(list(before), activation, list(after), film_position, rank, dtype)

    def factors() -> Sequence[Tensor | None]:
        return [None if one is None else _rows(one, weight.shape[0], weight).to(dtype) for one in compose(taken, rank)]

    if frozen:
        gamma, beta = _once(weight, taken, factors) if _are_of_all_samples(taken, rank) else factors()
        if folded:
            weight, bias = _once(
                weight, [*folded, ("bias", bias)], lambda: _folded(weight, bias, compose(folded, rank))
            )
    else:
        gamma, beta = factors()
        weight, bias = _folded(weight, bias, compose(folded, rank))
    y = (conv_film_packed if frozen else conv_film)(
        input, weight, bias, gamma, beta, stride, padding, dilation, groups,
        activation=inside, negative_slope=negative_slope, film_position=film_position, keep=keep,
    )  # fmt: skip
    return _pending(y, pending, activation, negative_slope)


def _once(weight: Tensor, steps: Sequence[Step], make: Callable[[], Sequence[Tensor | None]]) -> Any:
    """What `make()` makes of `weight` and `steps`, which are the same at most calls: without a history, which would
    keep the weight, but requiring a gradient where one of these does, so that whoever asks for it is told."""
    values = [value for _, *values in steps for value in values]
    others = [value for value in values if isinstance(value, Tensor)]
    recorded = any(tensor.requires_grad for tensor in (weight, *others))
    purpose = recorded, tuple(kind for kind, *_ in steps), tuple(None if isinstance(v, Tensor) else v for v in values)

    def made() -> list[Tensor | None]:
        with torch.inference_mode(False), torch.no_grad():
            return [None if one is None else one.detach().requires_grad_(recorded) for one in make()]

    return remembered(weight, others, purpose, made)


def norm_steps_film(
    input: Tensor,
    norm: dict[str, Any],
    before: Sequence[Step],
    activation: str,
    negative_slope: float,
    after: Sequence[Step],
    film_position: str,
    dtype: torch.dtype,
) -> Tensor:
    """`after(activation(before(norm(input))))` in `dtype` by `film_kernels.norm_film`, whose arguments in `norm` are
    those of the normalisation.

    What is the same for all samples in front of the activation goes into weight and bias, which may be float32 beside
    an input of 16 bits; the rest is gamma and beta, as in `conv_steps_film`.
    """
    input = input.to(dtype)
    channel_dim, rank = norm["channel_dim"], input.dim() - 2
    options = _options_of(norm, input)
    channels = input.shape[channel_dim]

    def composed(steps: Sequence[Step]) -> tuple[Rows, Rows]:
        return compose(steps, rank, channel_dim)

    count = 0
    while count < len(before) and _is_of_all_samples(before[count], rank, channel_dim):
        count += 1
    steps = [*after] if film_position == "post" else [*before[count:]]
    number = _length_of_one(steps, lambda step: True) if dtype == torch.float16 else len(steps)
    taken, pending = steps[:number], steps[number:]
    if pending and film_position == "pre":
        pending.append(_ACTIVATION)
    weight, bias = _affine(options.pop("weight"), options.pop("bias"), composed(before[:count]), channels, input)
    gamma, beta = (None if one is None else _rows(one, channels, input).to(dtype) for one in composed(taken))
    inside = "none" if _ACTIVATION in pending else activation
    y = norm_film(
        input, weight=weight, bias=bias, gamma=gamma, beta=beta,
        activation=inside, negative_slope=negative_slope, film_position=film_position, **options,
    )  # fmt: skip
    return _pending(y, pending, activation, negative_slope).to(dtype)


def _options_of(norm: dict[str, Any], input: Tensor) -> dict[str, Any]:
    """Arguments of norm_film with what depends on the input: as many groups as channels, and rms_norm's own eps."""
    options = dict(norm)
    if options["num_groups"] == 0:
        options["num_groups"] = input.shape[1]
    if options["norm"] == "rms":
        options["eps"] = rms_eps(input.dtype, options["eps"])
    return options


def _affine(
    weight: Tensor | None, bias: Tensor | None, rows: tuple[Rows, Rows], channels: int, input: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a norm with a scale and a shift of all samples behind them, in the input's dtype, or in
    float32 where they are wider."""
    scale, shift = (None if one is None else _rows(one, channels, input)[0] for one in rows)
    if scale is not None:
        weight = scale if weight is None else _at_least_float32(weight) * scale
        bias = None if bias is None else _at_least_float32(bias) * scale
    if shift is not None:
        bias = shift if bias is None else _at_least_float32(bias) + shift
    given = [one.dtype for one in (weight, bias) if one is not None]
    half = input.dtype in (torch.float16, torch.bfloat16) and all(dtype == input.dtype for dtype in given)
    dtype = input.dtype if half else _at_least_float32(input).dtype
    return tuple(None if one is None else one.to(dtype) for one in (weight, bias))  # type: ignore[return-value]


def _pending(y: Tensor, steps: Sequence[Step], activation: str, negative_slope: float) -> Tensor:
    """What is computed as the model has it behind a call."""
    for step in steps:
        y = ACTIVATIONS[activation].apply(y, negative_slope) if step is _ACTIVATION else _as_written(y, step)
    return y


def _dtype_of(input: Tensor) -> torch.dtype:
    """The dtype in which a convolution of `input` is computed: autocast's own, where it is on."""
    device = input.device.type
    on = has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and input.dtype != torch.float64 else input.dtype


def _parts(
    before: list[Step], activation: str, after: list[Step], film_position: str, spatial_rank: int, dtype: torch.dtype
) -> tuple[list[Step], list[Step], str, list[Step]]:
    """The steps that go into weight and bias, those that are gamma and beta, the activation of the call, and what is
    computed as written behind it."""
    post = film_position == "post"
    if dtype != torch.float16:
        return (before, after, activation, []) if post else ([], before, activation, [])
    count = _length_of_one(before, lambda step: _is_of_all_samples(step, spatial_rank))
    folded, rest = before[:count], before[count:]
    if post and rest:
        return folded, [], "none", [*rest, _ACTIVATION, *after]
    steps = after if post else rest
    count = _length_of_one(steps, lambda step: step[0] != "batch_norm")
    taken, pending = steps[:count], steps[count:]
    if post or not pending:
        return folded, taken, activation, pending
    return folded, taken, "none", [*pending, _ACTIVATION]


def _length_of_one(steps: list[Step], may_be: Callable[[Step], bool]) -> int:
    """How many of the first of `steps` are together one scale and one shift that float16 can hold."""
    kinds = [step[0] if may_be(step) and _fits(step) else "" for step in steps[:2]] + ["", ""]
    if kinds[0] == "batch_norm":
        return 1
    scales = int(kinds[0] == "scale")
    return scales + int(kinds[scales] in ("shift", "subtract"))


def _fits(step: Step) -> bool:
    """Whether the factor can be rounded to float16 without loss: a number may be out of its range, and 1 / x of one in
    range too. Of a BatchNorm, whose numbers are those of the convolution's result, it is taken for granted."""
    if step[0] == "batch_norm":
        return True
    value = step[1]
    if isinstance(value, Tensor):
        return value.dtype == torch.float16
    return isinstance(value, (int, float)) and (value == 0 or 2**-10 <= abs(value) <= 2**10)


def _is_of_all_samples(step: Step, spatial_rank: int, channel_dim: int = 1) -> bool:
    value = None if step[0] == "batch_norm" else _as_rows(step[1], spatial_rank, channel_dim)
    return not isinstance(value, Tensor) or value.shape[0] == 1


def _are_of_all_samples(steps: Sequence[Step], spatial_rank: int) -> bool:
    return all(_is_of_all_samples(step, spatial_rank) for step in steps)


def _as_written(y: Tensor, step: Step) -> Tensor:
    """One step as the model has it."""
    kind, *values = step
    if kind == "batch_norm":
        mean, var, weight, bias, eps = values
        return F.batch_norm(y, mean, var, weight, bias, eps=eps)
    return _WRITTEN[kind](y, values[0])


def compose(steps: Sequence[Step], spatial_rank: int, channel_dim: int = 1) -> tuple[Rows, Rows]:
    """(scale, shift) of all `steps` together, in float32 at least."""
    scale: Rows = None
    shift: Rows = None
    one_scale: Rows
    one_shift: Rows
    for kind, *values in steps:
        if kind == "batch_norm":
            one_scale, one_shift = _batch_norm(*values)
        else:
            value = _as_rows(_at_least_float32(values[0]), spatial_rank, channel_dim)
            if kind in ("scale", "divide"):
                one_scale, one_shift = (value if kind == "scale" else 1 / value), None
            else:
                one_scale, one_shift = None, (value if kind == "shift" else -value)
        if one_scale is not None:
            scale = one_scale if scale is None else scale * one_scale
            shift = None if shift is None else shift * one_scale
        if one_shift is not None:
            shift = one_shift if shift is None else shift + one_shift
    return scale, shift


def _folded(weight: Tensor, bias: Tensor | None, rows: tuple[Rows, Rows]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with a scale and a shift of all samples in them, in their own dtypes."""
    dtype, (scale, shift) = weight.dtype, rows
    if scale is None and shift is None:
        return weight, bias
    channels, wide = weight.shape[0], _at_least_float32(weight)
    total = None if bias is None else _at_least_float32(bias)
    if scale is not None:
        row = _row(scale, channels, wide)
        weight = (wide * row.reshape(-1, *(1,) * (weight.dim() - 1))).to(dtype)
        total = None if total is None else total * row
    if shift is not None:
        row = _row(shift, channels, wide)
        total = row if total is None else total + row
    return weight, None if total is None else total.to(dtype if bias is None else bias.dtype)


def _at_least_float32(value: Any) -> Any:
    """A tensor of half precision in float32, anything else as it is: products keep their range and digits."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def _batch_norm(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(v - mean) / sqrt(var + eps) * weight + bias, as it is in eval."""
    mean, var, weight, bias = (_at_least_float32(one) for one in (mean, var, weight, bias))
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    shift = shift if bias is None else shift + bias
    return scale.unsqueeze(0), shift.unsqueeze(0)


def _as_rows(factor: Tensor | float, spatial_rank: int, channel_dim: int = 1) -> Tensor | float:
    """A factor that broadcasts against (N, K, *out), or (N, *out, K), without varying over positions, as (N | 1, K |
    1)."""
    if not isinstance(factor, Tensor):
        return factor
    missing = spatial_rank + 2 - factor.dim()
    if channel_dim == -1:
        return factor.reshape(1 if missing > 0 else factor.shape[0], factor.shape[-1] if factor.dim() else 1)
    return factor.reshape((1,) * missing + tuple(factor.shape)).flatten(1) if missing > 0 else factor.flatten(1)


def _rows(rows: Tensor | float, channels: int, like: Tensor) -> Tensor:
    """(N | 1, K)."""
    if not isinstance(rows, Tensor):
        return like.new_full((1, channels), rows)
    return rows.expand(rows.shape[0], channels)


def _row(rows: Tensor | float, channels: int, like: Tensor) -> Tensor:
    """(K,), of what is the same for all samples."""
    return _rows(rows, channels, like)[0]
