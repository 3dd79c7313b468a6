"""Who is measured: what a user would pick instead, each of this package's backends, and its automatic choice."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from film_kernels.backends import BACKENDS, choose, cuda_hopper
from film_kernels.problems.conv_film import KEEPS, ConvFilm

from . import cudnn_graph
from .case import Case
from .conv_case import ConvCase
from .exported import RUNTIMES, NotExported, exported, opened
from .work import Call, Work


class Unserved(Exception):
    """A peer cannot serve a row; the message says why."""


@dataclass(frozen=True)
class Peer:
    """`build(work)` gives the layer of `work` as a function of its input, or raises Unserved."""

    name: str
    build: Callable[[Work], Call]
    ours: bool = False
    compiled: bool = False  # by torch.compile or by exporting it, which takes seconds
    alone: bool = False  # timed by itself: its threads go on looking for work when its call has ended
    channels_last: bool = False  # converts a contiguous row's tensors, as a user would convert the network
    inference_only: bool = False
    training_only: bool = False  # its forward alone is another peer's


def _plain(work: Work) -> Call:
    return partial(work.row.case.plain, **work.parameters)


class _Layer(nn.Module):
    """The plain layer as a module: torch.compile takes parameters to stay where they are."""

    def __init__(self, case: Case, weight: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.case, self.weight, self.bias = case, weight, bias

    def forward(self, input: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        return self.case.plain(input, self.weight, self.bias, gamma, beta)


def _compiled(mode: str | None) -> Callable[[Work], Call]:
    def build(work: Work) -> Call:
        tunes = mode is None or isinstance(work.row.case, ConvCase) or work.input.device.type != "cpu"
        if not tunes:
            raise Unserved("it tunes matrix products and convolutions; without one it is torch.compile")
        layer = torch.compile(_Layer(work.row.case, work.weight, work.bias), mode=mode, dynamic=False)

        def call(input: Tensor) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # what the last call returned may be written over
            return layer(input, work.gamma, work.beta)

        return call

    return build


def _ours(backend: str | None, keep: str | None = None) -> Callable[[Work], Call]:
    def build(work: Work) -> Call:
        problem = work.row.problem(work.input.device)
        options = work.row.case.options
        if keep is not None:
            if not isinstance(problem, ConvFilm) or work.input.device.type == "cpu":
                raise Unserved("what is kept is a choice of conv_film on GPUs")
            problem, options = problem._replace(keep=keep), {**options, "keep": keep}
        if backend is None:
            choose(problem, None)  # which raises where a setting is wrong: no refusal but a failure
        elif (reason := BACKENDS[backend].unavailable() or BACKENDS[backend].why_not(problem)) is not None:
            raise Unserved(reason)
        return partial(work.row.case.fused, **work.parameters, **options, backend=backend)

    return build


def _hopper(work: Work) -> Call:
    call, problem = _ours("cuda")(work), work.row.problem(work.input.device)
    if not isinstance(problem, ConvFilm):
        raise Unserved("it is a convolution's")
    if (reason := cuda_hopper.why_not(problem)) is not None:
        raise Unserved(reason)

    def in_that_way(input: Tensor) -> Tensor:
        with mock.patch.dict(os.environ, {cuda_hopper.VARIABLE: "hopper"}):
            return call(input)

    return in_that_way


def _cudnn(work: Work) -> Call:
    reason = cudnn_graph.why_not(work)
    if reason is not None:
        raise Unserved(reason)
    return cudnn_graph.build(work)


def _exported(name: str) -> Callable[[Work], Call]:
    def build(work: Work) -> Call:
        if work.input.device.type != "cpu":
            raise Unserved("it is measured on CPUs")
        if work.input.dtype != torch.float32:
            raise Unserved("it is measured in float32")
        if work.row.channels_last:
            raise Unserved("ONNX knows no memory formats: it is the same as in the contiguous row")
        factors = [t for t in (work.gamma, work.beta) if t is not None]
        layer = _Layer(work.row.case, work.weight, work.bias)
        try:
            with exported(layer, (work.input, work.gamma, work.beta)) as file:
                run = opened(name, file)
        except NotExported as reason:
            raise Unserved(str(reason)) from None
        return lambda input: run([input, *factors])

    return build


PLAIN = Peer("plain", _plain)
AUTOMATIC = Peer("automatic", _ours(None), ours=True)
PEERS = {
    peer.name: peer
    for peer in (
        PLAIN,
        AUTOMATIC,
        *(Peer(name, _ours(name), ours=True) for name in BACKENDS),
        *(
            Peer(f"{name} {keep}", _ours(name, keep), ours=True, training_only=True)
            for name in ("cuda", "triton")
            for keep in KEEPS[1:]
        ),
        Peer("cuda hopper", _hopper, ours=True, inference_only=True),
        Peer("plain channels_last", _plain, channels_last=True),
        Peer("cuDNN graph", _cudnn, inference_only=True),
        Peer("torch.compile", _compiled(None), compiled=True),
        Peer("max-autotune", _compiled("max-autotune"), compiled=True),
        *(Peer(name, _exported(name), compiled=True, alone=True, inference_only=True) for name in RUNTIMES),
    )
}
EAGER = tuple(name for name, peer in PEERS.items() if not peer.compiled)


def chosen_backend(work: Work) -> str:
    """The name of the backend that the automatic choice takes."""
    return choose(work.row.problem(work.input.device), None).name


def call_of(peer: Peer, work: Work, training: bool) -> tuple[Call, Work]:
    """The peer's call and the tensors that it works on. Raises Unserved with the reason."""
    if training and peer.inference_only:
        raise Unserved("it is for inference: it has no backward")
    if not training and peer.training_only:
        raise Unserved("without a backward nothing is kept")
    if peer.channels_last:
        if work.row.channels_last:
            raise Unserved("this row is channels_last: it is the same as plain")
        if work.input.dim() != 4:
            raise Unserved("channels_last is for pictures")
        work = work.cast(channels_last=True)
    return peer.build(work), work
