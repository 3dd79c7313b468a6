"""Forward and the five gradients in extended precision, by loops over kernel taps: what float64 results are held to.

Written from the formulas of plain convolution and the chain rule, with nothing of the package in it.
"""

from __future__ import annotations

import itertools

import numpy as np

Real = np.longdouble


def _windows(padded, taps, out, stride, dilation):
    """For each kernel tap, the view of `padded` (N, C, *in) that it meets: (tap, view of (N, C, *out))."""
    for tap in itertools.product(*map(range, taps)):
        slices = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, s, o in zip(tap, dilation, stride, out, strict=True)
        )
        yield tap, padded[(slice(None), slice(None), *slices)]


def forward_and_gradients(input, weight, bias, gamma, beta, grad, problem, value, derivative):
    """(y, dx, dW, db, dgamma, dbeta) as numpy arrays of extended precision; act is `value`, act' `derivative`."""
    x, w, b, ga, be, g = (
        np.asarray(t.detach().double().numpy(), Real) for t in (input, weight, bias, gamma, beta, grad)
    )
    groups, rank = problem.groups, problem.spatial_rank
    cg, kg = w.shape[1], w.shape[0] // groups
    pads = [(0, 0), (0, 0), *problem.padding]
    padded = np.pad(x, pads)
    out = problem.out_size
    ones = (1,) * rank
    ga, be, b4 = ga.reshape(*ga.shape, *ones), be.reshape(*be.shape, *ones), b.reshape(1, -1, *ones)
    ga = ga + Real(problem.gamma_offset)

    z = np.zeros(problem.out_shape, Real) + b4
    for tap, view in _windows(padded, w.shape[2:], out, problem.stride, problem.dilation):
        for i in range(groups):
            part = w[(slice(i * kg, (i + 1) * kg), slice(None), *tap)]
            z[:, i * kg : (i + 1) * kg] += np.einsum("kc,nc...->nk...", part, view[:, i * cg : (i + 1) * cg])
    post = problem.film_position == "post"
    v = z if post else ga * z + be
    act = value(v)
    y = ga * act + be if post else act

    u = g * derivative(v)
    positions = tuple(range(2, 2 + rank))
    dz = ga * u
    dgamma = (g * act if post else u * z).sum(positions)
    dbeta = (g if post else u).sum(positions)
    dpadded, dw = np.zeros_like(padded), np.zeros_like(w)
    views = _windows(dpadded, w.shape[2:], out, problem.stride, problem.dilation)
    inputs = _windows(padded, w.shape[2:], out, problem.stride, problem.dilation)
    for (tap, dview), (_, view) in zip(views, inputs, strict=True):
        for i in range(groups):
            ks, cs = slice(i * kg, (i + 1) * kg), slice(i * cg, (i + 1) * cg)
            dview[:, cs] += np.einsum("kc,nk...->nc...", w[(ks, slice(None), *tap)], dz[:, ks])
            dw[(ks, slice(None), *tap)] = np.einsum("nkp,ncp->kc", _flat(dz[:, ks]), _flat(view[:, cs]))
    inner = tuple(slice(before, before + size) for (before, _), size in zip(problem.padding, x.shape[2:], strict=True))
    dx = dpadded[(slice(None), slice(None), *inner)]
    return y, dx, dw, dz.sum((0, *positions)), dgamma, dbeta


def _flat(a):
    return a.reshape(*a.shape[:2], -1)


def activation(name, negative_slope):
    """(act, act') on arrays of extended precision, from the definitions."""
    lower = {"none": 1, "relu": 0, "leaky_relu": negative_slope}
    if name in lower:
        return (
            lambda v: np.where(v <= 0, Real(lower[name]), Real(1)) * v,
            lambda v: np.where(v <= 0, Real(lower[name]), Real(1)),
        )
    return {
        "sigmoid": (_sigmoid, lambda v: _sigmoid(v) * _sigmoid(-v)),
        "tanh": (np.tanh, lambda v: 1 - np.tanh(v) ** 2),
        "silu": (lambda v: v * _sigmoid(v), lambda v: _sigmoid(v) * (1 + v * _sigmoid(-v))),
        "mish": (
            lambda v: v * np.tanh(_softplus(v)),
            lambda v: np.tanh(_softplus(v)) + v * (1 - np.tanh(_softplus(v)) ** 2) * _sigmoid(v),
        ),
        "elu": (lambda v: np.where(v <= 0, np.expm1(v), v), lambda v: np.exp(np.minimum(v, 0))),
        "gelu": (lambda v: v * _normal(v), lambda v: _normal(v) + v * np.exp(-v * v / 2) / np.sqrt(2 * _PI)),
        "gelu_tanh": (
            lambda v: v * (1 + np.tanh(_cubic(v))) / 2,
            lambda v: (1 + np.tanh(_cubic(v))) / 2 + v / 2 * (1 - np.tanh(_cubic(v)) ** 2) * _cubic_slope(v),
        ),
    }[name]


_PI = 4 * np.arctan(Real(1))
_CUBE = Real(44715) / Real(10) ** 6


def _sigmoid(v):
    return (1 + np.tanh(v / 2)) / 2


def _softplus(v):
    return np.maximum(v, 0) + np.log1p(np.exp(-abs(v)))


def _normal(v):
    """The normal distribution's Phi(v), by erf's series of positive terms; beyond 9 it is 0 or 1 to 1e-18."""
    x = np.clip(v, -9, 9) / np.sqrt(Real(2))
    term = total = x
    for n in range(1, 140):
        term = term * 2 * x * x / (2 * n + 1)
        total = total + term
    return (1 + 2 / np.sqrt(_PI) * np.exp(-x * x) * total) / 2


def _cubic(v):
    return np.sqrt(2 / _PI) * (v + _CUBE * v**3)


def _cubic_slope(v):
    return np.sqrt(2 / _PI) * (1 + 3 * _CUBE * v * v)
