"""The example on Sort-of-CLEVR in small, as a command line in this process or in another."""

from __future__ import annotations

from examples.sort_of_clevr.__main__ import main

from .subprocesses import environment

COMMAND = ["-m", "examples.sort_of_clevr"]
SMALL = ("--epochs", 3, "--batch", 32)
SETTINGS = {"plain": False, "sentence_encoder": False, "epochs": 3, "batch": 32, "learning_rate": 1e-3, "seed": 0}


def outcome(capsys, *argv):
    """The exit code, stdout and stderr of the command line with these arguments."""
    try:
        code = main([str(argument) for argument in argv])
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


def for_the_example() -> dict[str, str]:
    """The environment of another process: this package and this example, on one thread."""
    return environment(OMP_NUM_THREADS="1")
