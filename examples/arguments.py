"""Types for argparse that say what is wrong with a value, and how any value can be printed."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable

import torch


def at_least(least: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text!r}")
        return int(text)

    return parse


def positive(text: str) -> float:
    """Parses a finite number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above zero, got {text!r}")
    return number


def available_device(text: str) -> torch.device:
    """Parses a device on which PyTorch can make a tensor here."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as each kind of device reports it
        raise argparse.ArgumentTypeError(f"cannot be used: {str(error).splitlines()[0]}") from None
    return device


def print_any_name() -> None:
    """From now on names of files that are not UTF-8 are printed too, with escapes, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
