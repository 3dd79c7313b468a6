"""Convolutions without FiLM, with the BatchNorm in eval and the activation that follow them."""

from __future__ import annotations

from .chain import Chain
from .factors import Factors
from .match import Match
from .nodes import tensor_of
from .records import Convolution


def match_of_convolution(convolution: Convolution, factors: Factors) -> Match | None:
    """`convolution` with what follows it up to an activation, where conv_film serves all of that; the convolution alone
    where nothing that follows can be taken in; None where it has no kernel."""
    result = tensor_of(convolution.node)
    if convolution.transposed or convolution.rank == 3 or convolution.cut:
        return None
    if result is not None and (result.dim() != convolution.rank + 2 or not result.dtype.is_floating_point):
        return None
    chain = Chain(convolution, convolution.rank, factors)
    chain.descend()
    for found in (chain, Chain(convolution, convolution.rank, factors)):
        match = found.match(without_film=True)
        if match is not None and match.reason is None:
            return match
    return None
