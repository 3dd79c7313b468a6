"""The network: four convolutions that a question modulates by FiLM, and a head that compares the objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from film_kernels import FiLM, FiLMGenerator, FusedFiLM

from . import encoders

CHANNELS = (16, 32, 32, 32)  # of the four FiLM layers
KERNELS = (5, 3, 3, 3)
STRIDES = (3, 2, 1, 1)  # 75 -> 25 -> 13 -> 13 -> 13 pixels a side
BRIGHTEST, SPREAD = 245, 50  # of an image's values: the background comes to 0, the objects to a few units
HIDDEN = 64  # of the head's layers
CELLS = 24  # what sums over all places are divided by: about as many see an object


def coordinates(height: int, width: int, device: torch.device) -> Tensor:
    """Two maps that say where a pixel is, (2, height, width): x and y from -1 to 1 (Perez et al., AAAI 2018)."""
    rows, columns = (torch.linspace(-1, 1, size, device=device) for size in (height, width))
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])


class FiLMLayer(nn.Module):
    """Conv2d, ReLU, FiLM with a gamma and beta made of the question; in one pass, or plain with the same state_dict."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, fused: bool) -> None:
        super().__init__()
        self.generator = FiLMGenerator(encoders.SIZE, outputs)
        self.fused = fused
        # gamma is 1 + what the generator makes, so that at first the layer is about what it is without FiLM
        if fused:
            self.conv = FusedFiLM(inputs, outputs, kernel, stride, padding=1, gamma_offset=1)
        else:
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=1)
            self.film = FiLM()
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, question: Tensor) -> Tensor:
        """x (N, inputs, H, W), question (N, encoders.SIZE); returns (N, outputs, H', W')."""
        gamma, beta = self.generator(question)
        if self.fused:
            return self.conv(x, gamma, beta)
        return self.film(torch.relu(self.conv(x)), 1 + gamma, beta)


class Head(nn.Module):
    """Finds the object that is asked about, compares each place of the maps with it, and answers.

    An attention over the places gives one vector, the object in question: what is seen there and where it is. A small
    network looks at each place beside that vector and their distance; the largest and the sum of what it finds, over
    all places, lead to the answer, once more through FiLM. This is a relation network (Santoro et al. 2017) where one
    object of each pair is fixed by the question."""

    def __init__(self, channels: int, answers: int) -> None:
        super().__init__()
        inputs = channels + 2
        self.attention = nn.Linear(inputs, 1)
        self.place = nn.Linear(inputs, HIDDEN)
        self.anchor = nn.Linear(inputs, HIDDEN, bias=False)
        self.distance = nn.Linear(3, HIDDEN, bias=False)
        self.pair = nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        self.found = nn.Linear(2 * HIDDEN + 2 * inputs, 2 * HIDDEN)
        self.generator = FiLMGenerator(encoders.SIZE, 2 * HIDDEN)
        self.film = FiLM()
        self.answer = nn.Linear(2 * HIDDEN, answers)

    def forward(self, x: Tensor, question: Tensor) -> Tensor:
        """x (N, C, H, W), question (N, encoders.SIZE); returns (N, answers)."""
        where = coordinates(*x.shape[2:], x.device).expand(len(x), -1, -1, -1)
        places = torch.cat([x, where], 1).flatten(2).transpose(1, 2)  # (N, H * W, inputs)
        anchor = (self.attention(places).softmax(1) * places).sum(1, keepdim=True)
        apart = places[..., -2:] - anchor[..., -2:]
        apart = torch.cat([apart, apart.square().sum(2, keepdim=True)], 2)
        pairs = self.pair(self.place(places) + self.anchor(anchor) + self.distance(apart))
        sums = [pairs.sum(1) / CELLS, places.sum(1) / CELLS]
        found = self.found(torch.cat([pairs.amax(1), *sums, anchor.squeeze(1)], 1))
        gamma, beta = self.generator(question)
        return self.answer(torch.relu(self.film(found, 1 + gamma, beta)))


class Network(nn.Module):
    """Answers questions about images."""

    def __init__(self, encoder: nn.Module, answers: int, fused: bool) -> None:
        super().__init__()
        self.encoder = encoder
        inputs: Sequence[int] = (3 + 2, *CHANNELS)
        self.layers = nn.ModuleList(
            FiLMLayer(inputs[place], CHANNELS[place], KERNELS[place], STRIDES[place], fused)
            for place in range(len(CHANNELS))
        )
        # An image has little but background in it: without this the differences that matter are too small to start with
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in CHANNELS)
        self.head = Head(CHANNELS[-1], answers)

    def forward(self, images: Tensor, questions: Tensor, which: Tensor) -> Tensor:
        """The score of each answer, (N, answers).

        Args:
            images: (N, 3, 75, 75) uint8.
            questions: (Q, ...), as the encoder's `prepare` makes them: those that are there, each once.
            which: (N,) int64, the place of each image's question in `questions`.
        """
        return self.look(images, questions, which)[0]

    def look(self, images: Tensor, questions: Tensor, which: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The scores, and the output of each FiLM layer, (N, C, H, W); arguments as for `forward`."""
        question = self.encoder(questions)[which]
        x = (BRIGHTEST - images.float()) / SPREAD
        x = torch.cat([x, coordinates(*x.shape[2:], x.device).expand(len(x), -1, -1, -1)], 1)
        maps = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            maps.append(layer(x, question))
            x = norm(maps[-1])
        return self.head(x, question), maps


def loss_of(scores: Tensor, answers: Tensor) -> Tensor:
    """The mean cross entropy; scores (N, answers), answers (N,) int64."""
    return F.cross_entropy(scores, answers)
