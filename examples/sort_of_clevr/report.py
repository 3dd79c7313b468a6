"""One training run from the dataset to the results: report.json and the pictures."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from examples.memory import kept_bytes

from . import checkpoint
from .data import Split, load_splits, load_vocabulary
from .errors import UserError
from .evaluation import accuracies, confusion, inputs_of, majority
from .pictures import draw_confusion, draw_curves, draw_feature_maps, draw_gammas
from .processes import Processes, processes
from .questions import KINDS
from .training import CHECKPOINT, Run


def train_and_report(data: Path, output: Path, settings: dict[str, Any], resume: bool, save_every: int) -> None:
    """Trains with these settings, or goes on training, and writes all that comes out of it to `output`.

    Raises UserError where the dataset, the settings or the checkpoint cannot be used, or `output` not be written."""
    with processes() as team:
        vocabulary = load_vocabulary(data)
        path = output / CHECKPOINT
        if not resume and os.path.lexists(path):
            raise UserError(f"{path} is there already: go on with --resume, or give another --output")
        state = checkpoint.load(path) if resume else None
        splits = load_splits(data, vocabulary, progress=team.first)
        run = Run(settings, vocabulary, splits["train"], team)
        if state is not None:
            run.restore(state)
        try:
            output.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a name that no folder can have
            raise UserError(f"cannot make the folder {output}: {error}") from error
        run.train(splits["train"], splits["validation"], output, save_every)
        if team.first:
            write_results(run, splits, output, team)


def write_results(run: Run, splits: dict[str, Split], output: Path, team: Processes) -> None:
    """Tests the network, prints what comes out, and writes report.json and the pictures to `output`."""
    memory = _peak_memory(team.device)  # before anything that is not training
    vocabulary, test = run.vocabulary, splits["test"]
    counts = confusion(run.network.eval(), test, team.device, len(vocabulary.answers))
    found, most_frequent = accuracies(counts), majority(splits["train"], test, len(vocabulary.answers))
    network = run.network.cpu()
    chosen = torch.arange(min(run.settings["batch"], len(splits["train"])))
    texts = network.encoder.prepare(splits["train"].texts)
    report = {
        "settings": run.settings,
        "test": found,
        "most_frequent_answer": most_frequent,
        "test_questions": len(test),
        "steps": run.step,
        "seconds": run.history["seconds"],
        "cpu_seconds": run.history["cpu_seconds"],
        "processes": team.count,
        "threads": torch.get_num_threads(),
        "device": str(team.device),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "peak_memory_bytes": memory,
        "kept_by_autograd_bytes": kept_bytes(network, *inputs_of(splits["train"], chosen, texts, torch.device("cpu"))),
        "confusion": {kind: count.tolist() for kind, count in zip(KINDS, counts, strict=True)},
        "answers": vocabulary.answers,
        "torch": torch.__version__,
    }
    print(f"{'test split':>16} {'accuracy':>9} {'most frequent answer':>21}")
    for name in found:
        print(f"{name:>16} {found[name]:9.1%} {most_frequent[name]:21.1%}")
    print(f"{run.step} steps in {report['seconds']:.0f} s ({report['cpu_seconds']:.0f} s of CPU time, {team.count} "
          f"processes of {report['threads']} threads); peak memory {memory / 2**20:.0f} MiB; autograd keeps "
          f"{report['kept_by_autograd_bytes'] / 2**20:.2f} MiB a step")  # fmt: skip
    try:
        (output / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        draw_curves(run.history, most_frequent, output / "curves.png")
        draw_confusion(counts, vocabulary.answers, output / "confusion.png")
        draw_feature_maps(network, *_example(test), vocabulary.answers, output / "feature_maps.png")
        draw_gammas(network, test, output / "gammas.png")
    except OSError as error:
        raise UserError(f"cannot write the results to {output}: {error}") from error
    print(f"wrote report.json, curves.png, confusion.png, feature_maps.png and gammas.png to {output}")


def _example(test: Split) -> tuple[torch.Tensor, list[str]]:
    """The test split's first image, with one question of each kind that there is about it."""
    of_kind = {}
    for place in (test.image == 0).nonzero().flatten().tolist():
        of_kind.setdefault(int(test.kind[place]), test.texts[test.text[place]])
    return test.images[0], [of_kind[kind] for kind in sorted(of_kind)]


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's memory for tensors, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
