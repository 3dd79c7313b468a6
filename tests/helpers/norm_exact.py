"""norm_film forward and its five gradients in extended precision: what float64 results are held to.

Written from the definitions and the chain rule, with nothing of the package in it.
"""

from __future__ import annotations

import numpy as np

from .exact import Real


def forward_and_gradients(case, tensors, grad, value, derivative):
    """(y, dx, dw, db, dgamma, dbeta) as numpy arrays of extended precision, None for what is not given; gamma and beta
    are (N, C). act is `value`, act' `derivative`."""
    x, w, b, gamma, beta, g = (
        None if t is None else np.asarray(t.detach().double().numpy(), Real) for t in (*tensors, grad)
    )
    x, g = (np.moveaxis(t, case.channel_dim, 1) for t in (x, g))
    ones = (1,) * (x.ndim - 2)

    def over_positions(factor, missing):
        return Real(missing) if factor is None else factor.reshape(-1, x.shape[1], *ones)

    if case.norm == "group":
        seen = x.reshape(x.shape[0], case.num_groups, x.shape[1] // case.num_groups, *x.shape[2:])
        axes = tuple(range(2, seen.ndim))
    else:
        seen, axes = x, ((0, *range(2, x.ndim)) if case.norm == "batch" else (1,))
    count = np.prod([seen.shape[axis] for axis in axes])

    def of_group(t):
        return t.sum(axes, keepdims=True)

    centred = case.norm in ("group", "batch", "channel")
    deviation = seen - of_group(seen) / count if centred else seen
    squares, eps = of_group(deviation**2), Real(case.eps)
    rstd = 1 / np.maximum(np.sqrt(squares), eps) if case.norm == "l2" else 1 / np.sqrt(squares / count + eps)
    xhat = (deviation * rstd).reshape(x.shape)

    weight, scale, shift = (
        over_positions(w, 1),
        over_positions(gamma, 1) + Real(case.gamma_offset),
        over_positions(beta, 0),
    )
    z = weight * xhat + over_positions(b, 0)
    pre = case.film_position == "pre"
    v = scale * z + shift if pre else z
    y = value(v) if pre else scale * value(v) + shift
    d = (g if pre else g * scale) * derivative(v)
    dz = d * scale if pre else d
    positions = tuple(range(2, x.ndim))
    dxhat = (dz * weight).reshape(seen.shape)
    along = of_group(dxhat * xhat.reshape(seen.shape))
    along = np.where(np.sqrt(squares) >= eps, along, 0) if case.norm == "l2" else along / count
    inner = dxhat - xhat.reshape(seen.shape) * along - (of_group(dxhat) / count if centred else 0)
    gradients = (
        np.moveaxis((inner * rstd).reshape(x.shape), 1, case.channel_dim),
        (dz * xhat).sum((0, *positions)),
        dz.sum((0, *positions)),
        (d * z if pre else g * value(v)).sum(positions),
        (d if pre else g).sum(positions),
    )
    found = (None if t is None else gradient for t, gradient in zip(tensors, gradients, strict=True))
    return np.moveaxis(y, 1, case.channel_dim), *found
