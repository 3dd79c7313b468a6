"""A training run on disk: all that it takes to go on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from .errors import UserError

KEYS = {"format", "settings", "words", "answers", "network", "optimizer", "scheduler", "rng", "step", "history"}
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
    """The state that was saved, on the CPU. Raises UserError where there is none or it is not one of this example."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such checkpoint; `train` makes one") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot read it as a checkpoint: {reason}") from error
    if not isinstance(state, dict) or KEYS - set(state) or state["format"] != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this example")
    return state
