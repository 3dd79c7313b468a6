"""Visual question answering on Sort-of-CLEVR (Santoro et al. 2017): a FiLM network trained before one's eyes.

python -m examples.sort_of_clevr generate
python -m examples.sort_of_clevr train
python -m examples.sort_of_clevr ask data/sort_of_clevr/images/000019.png "what shape is the red object?"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.arguments import at_least, positive, print_any_name

from .ask import ask
from .errors import UserError
from .generate import LEAST_IMAGES, generate
from .training import CHECKPOINT

DATA = Path("data/sort_of_clevr")
OUTPUT = Path("results/sort_of_clevr")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 where something given cannot be used, or 130 after Ctrl-C.

    argparse exits with 2."""
    print_any_name()
    options = _parser().parse_args(argv)
    try:
        options.command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    title, _, usage = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="sort_of_clevr", description=title, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="generate|train|ask")

    command = commands.add_parser("generate", help="draw the images and write the questions",
                                  description="Draws images of six coloured shapes and writes questions about them. "
                                              "The same seed gives the same bytes.",
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    command.add_argument("--images", type=at_least(LEAST_IMAGES), default=10_000, help="how many, 20 questions each")
    command.add_argument("--seed", type=at_least(0), default=0, help="of all that is drawn by lot")
    command.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="the dataset's folder")
    command.set_defaults(command=_generate)

    command = commands.add_parser("train", help="train the network, test it and draw its pictures",
                                  description="Trains the network, tests it, and draws its pictures. "
                                              "Under torchrun the processes train it together.",
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    command.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="the dataset's folder")
    command.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="for checkpoint, report, pictures")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output")
    command.add_argument("--plain", action="store_true", help="Conv2d, ReLU and FiLM in place of the fused layers")
    command.add_argument("--sentence-encoder", action="store_true",
                         help="pretrained sentence embeddings (package wordllama), no GRU")  # fmt: skip
    command.add_argument("--epochs", type=at_least(1), default=6, help="times that every question is asked")
    command.add_argument("--batch", type=at_least(1), default=64, help="questions a step, of all processes together")
    command.add_argument("--learning-rate", type=positive, default=1e-3, help="of Adam, at its highest")
    command.add_argument("--seed", type=at_least(0), default=0, help="of the weights and of the questions' order")
    command.add_argument("--save-every", type=at_least(1), default=500, metavar="STEPS",
                         help="steps between checkpoints; there also is one after each epoch")  # fmt: skip
    command.set_defaults(command=_train)

    command = commands.add_parser("ask", help="ask a trained network a question about an image",
                                  description="Prints the answer, with its probability and that of the runner-up.",
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    command.add_argument("image", type=Path, metavar="IMAGE", help="an image file, as `generate` draws them")
    command.add_argument("question", metavar="QUESTION", help='such as "what shape is the red object?"')
    command.add_argument("--checkpoint", type=Path, default=OUTPUT / CHECKPOINT, metavar="FILE", help="of `train`")
    command.set_defaults(command=_ask)
    return parser


def _generate(options: argparse.Namespace) -> None:
    generate(options.data, options.images, options.seed)
    print(f"wrote {options.images} images and their questions to {options.data}")


def _train(options: argparse.Namespace) -> None:
    from .report import train_and_report  # matplotlib, which `ask` does without

    names = ("plain", "sentence_encoder", "epochs", "batch", "learning_rate", "seed")
    settings = {name: getattr(options, name) for name in names}
    train_and_report(options.data, options.output, settings, options.resume, options.save_every)


def _ask(options: argparse.Namespace) -> None:
    (best, likeliest), (second, next_to_it), *_ = ask(options.image, options.question, options.checkpoint)
    print(f"{best} ({likeliest:.1%}; next: {second}, {next_to_it:.1%})")


if __name__ == "__main__":
    sys.exit(main())
