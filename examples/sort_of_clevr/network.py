"""Makes the network that some settings ask for, also the one that a checkpoint holds."""

from __future__ import annotations

from typing import Any

from .data import Vocabulary
from .encoders import GRUEncoder, PretrainedEncoder
from .errors import UserError
from .likeness import difference
from .model import Network


def make_network(vocabulary: Vocabulary, settings: dict[str, Any]) -> Network:
    """`settings` has "plain" and "sentence_encoder", both bool. The weights are drawn from torch's generator."""
    encoder = PretrainedEncoder() if settings["sentence_encoder"] else GRUEncoder(vocabulary.words)
    return Network(encoder, len(vocabulary.answers), fused=not settings["plain"])


def restore_network(state: dict[str, Any]) -> tuple[Network, Vocabulary]:
    """The network of a checkpoint, ready to answer, and its vocabulary.

    Raises UserError where the weights are not those of this network."""
    vocabulary = Vocabulary(state["words"], state["answers"])
    network = make_network(vocabulary, state["settings"])
    load_weights(network, state)
    return network.eval(), vocabulary


def load_weights(network: Network, state: dict[str, Any]) -> None:
    """Gives `network` the weights of a checkpoint. Raises UserError where they are not those of such a network."""
    if wrong := difference(dict(state["network"]), dict(network.state_dict()), "its state"):
        raise UserError(f"the checkpoint is of another network: {wrong}")
    network.load_state_dict(state["network"])
