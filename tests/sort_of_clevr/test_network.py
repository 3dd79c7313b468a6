"""The network: fused and plain are one, and the encoders of questions."""

from __future__ import annotations

import sys

import pytest
import torch

from examples.sort_of_clevr import encoders, evaluation, model, questions
from examples.sort_of_clevr.errors import UserError
from examples.sort_of_clevr.network import make_network
from tests.helpers.clevr_example import SETTINGS, outcome


def test_plain_and_fused_are_one_network(vocabulary, splits):
    networks = []
    for plain in (True, False):
        torch.manual_seed(0)
        networks.append(make_network(vocabulary, {**SETTINGS, "plain": plain}).double())
    states = [network.state_dict() for network in networks]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    split, found = splits["train"], []
    for network in networks:
        inputs = evaluation.inputs_of(
            split, torch.arange(16), network.encoder.prepare(split.texts), torch.device("cpu")
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of the images
            patch.setattr(model, "coordinates", lambda *of, inner=model.coordinates: inner(*of).double())
            scores = network(*inputs)
        model.loss_of(scores, split.answer[:16]).backward()
        found.append([scores.detach(), *(parameter.grad for parameter in network.parameters())])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-12)


def test_the_encoder_sees_words_and_not_what_pads_them(vocabulary):
    encoder = encoders.GRUEncoder(vocabulary.words)
    short, long = (
        "Is the RED object on the left?",
        "what is the number of objects shaped like the grey one, itself included?",
    )
    together = encoder(encoder.prepare([short, long]))
    torch.testing.assert_close(together[:1], encoder(encoder.prepare(["is the red object on the left"])))
    assert (together[0] - together[1]).abs().max() > 0.01
    order = encoder(encoder.prepare(["red left", "left red"]))
    assert (order[0] - order[1]).abs().max() > 0.001


def test_the_pretrained_encoder_needs_no_network(dataset, tmp_path, capsys, monkeypatch):
    pytest.importorskip("wordllama")
    import socket

    def refuse(*arguments):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    options = ["--data", dataset, "--output", tmp_path, "--epochs", 1, "--batch", 64, "--sentence-encoder"]
    assert outcome(capsys, "train", *options)[0] == 0
    image, path = dataset / "images/000019.png", tmp_path / "checkpoint.pt"
    code, printed, err = outcome(capsys, "ask", image, "which form has the crimson thing?", "--checkpoint", path)
    assert code == 0 and printed.split()[0] in questions.ANSWERS, err
    assert outcome(capsys, "ask", image, "?", "--checkpoint", path)[0] == 1


def test_a_missing_pretrained_encoder_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(UserError, match="pip install wordllama"):
        encoders.PretrainedEncoder()
