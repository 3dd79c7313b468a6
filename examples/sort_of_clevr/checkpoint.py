"""A training run on disk: all that it takes to go on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .likeness import is_list_of

KEYS = {"format", "settings", "words", "answers", "network", "optimizer", "scheduler", "rng", "step", "history"}
_CURVES = ("loss", "accuracy")  # of the history: a number for each step
FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes the state so that `path` is, at any moment, either the old checkpoint or the new one, whole.

    Raises UserError where it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save has a RuntimeError for a full disk
        raise UserError(f"cannot write the checkpoint {path}: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """The state that was saved, on the CPU. Raises UserError where there is none or it is not one of this example.

    Whether its tensors fit a network or a training run is seen there."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such checkpoint; `train` makes one") from error
    except Exception as error:  # whatever a broken or foreign file makes torch.load stumble over
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):  # which advises to trust the file
            reason = "it is damaged, or holds more than tensors, numbers and texts"
        raise UserError(f"{path}: cannot read it as a checkpoint: {reason}") from error
    if type(state) is not dict or KEYS - set(state) or type(state["format"]) is not int or state["format"] != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this example")
    if wrong := _what_is_wrong(state):
        raise UserError(f"{path}: not a checkpoint of this example: its {wrong} is not as `train` writes it")
    return state


def _what_is_wrong(state: dict[str, Any]) -> str | None:
    """The entry that has not the form in which `save` is given it, or None."""
    settings, network, history, step = (state[name] for name in ("settings", "network", "history", "step"))
    right = {
        "settings": type(settings) is dict
        and all(type(value) in (bool, int, float) for value in settings.values())
        and all(type(settings.get(name)) is bool for name in ("plain", "sentence_encoder")),
        "words": is_list_of(state["words"], str),
        "answers": is_list_of(state["answers"], str) and len(state["answers"]) > 1,
        "network": isinstance(network, dict)
        and all(type(name) is str and type(value) is torch.Tensor for name, value in network.items()),
        "optimizer": type(state["optimizer"]) is dict,
        "scheduler": type(state["scheduler"]) is dict,
        "rng": type(state["rng"]) is torch.Tensor,
        "step": type(step) is int and step >= 0,
        "history": type(history) is dict
        and type(step) is int
        and all(is_list_of(history.get(name), float) and len(history[name]) == step for name in _CURVES)
        and all(type(history.get(name)) is float for name in ("seconds", "cpu_seconds"))
        and is_list_of(history.get("validation"), list)
        and all(_is_validation(entry) for entry in history["validation"]),
    }
    return next((name for name, fits in right.items() if not fits), None)


def _is_validation(entry: list[Any]) -> bool:
    """Whether it is [step, {kind: accuracy}]."""
    if len(entry) != 2 or type(entry[0]) is not int or type(entry[1]) is not dict:
        return False
    return {"non-relational", "relational"} <= set(entry[1]) and all(
        type(value) is float for value in entry[1].values()
    )
