"""The pictures of a trained network: curves, confusion, feature maps under several questions, and the gammas' map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .data import Split
from .model import Network
from .questions import KINDS, NON_RELATIONAL, RELATIONAL

SHOWN_CHANNELS = 6  # feature maps a question
SMOOTH = 100  # steps whose mean the training curves show
DPI = 80


def draw_curves(history: dict[str, Any], majority: dict[str, float], output: Path) -> None:
    """Loss and accuracy in training, and the accuracy on the validation split after each epoch."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axis, name in ((loss, "loss"), (accuracy, "accuracy")):
        values = torch.tensor(history[name])
        width = min(SMOOTH, len(values))
        smooth = values.unfold(0, width, 1).mean(1)
        label = f"training, mean of {width} steps" if name == "accuracy" else None
        axis.plot(range(width, len(values) + 1), smooth.numpy(), color="0.4", label=label)
        axis.set(xlabel="step", ylabel="cross entropy" if name == "loss" else "fraction of right answers")
        axis.grid(alpha=0.3)
    loss.set_title("Loss in training")
    steps = [step for step, _ in history["validation"]]
    for name, colour in (("non-relational", "tab:blue"), ("relational", "tab:orange")):
        found = [accuracies[name] for _, accuracies in history["validation"]]
        accuracy.plot(steps, found, "o-", color=colour, label=f"validation, {name}")
        accuracy.axhline(majority[name], color=colour, linestyle=":", label=f"most frequent answer, {name}")
    accuracy.set(title="Accuracy", ylim=(0, 1.02))
    accuracy.legend(loc="lower right", fontsize=8)
    figure.savefig(output, dpi=DPI)


def draw_confusion(counts: Tensor, answers: Sequence[str], output: Path) -> None:
    """One matrix for each kind of question: right answers are rows, given ones columns; fractions of a row."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for kind, axis, count in zip(KINDS, figure.subplots(2, 3).flat, counts, strict=True):
        there = (count.sum(0) + count.sum(1)).nonzero().flatten()
        part = count[there][:, there]
        fractions = part / part.sum(1, keepdim=True).clamp_min(1)
        axis.imshow(fractions.numpy(), vmin=0, vmax=1, cmap="Blues")
        for row, of_row in enumerate(fractions.tolist()):
            for column, fraction in enumerate(of_row):
                colour = "white" if fraction > 0.6 else "black"
                axis.text(column, row, f"{fraction:.2f}", ha="center", va="center", color=colour, fontsize=9)
        labels = [answers[place] for place in there]
        axis.set_xticks(range(len(labels)), labels)
        axis.set_yticks(range(len(labels)), labels)
        right = count.diagonal().sum() / count.sum().clamp_min(1)
        axis.set(title=f"{kind}: {right:.1%} right", xlabel="answer given", ylabel="right answer")
    figure.savefig(output, dpi=DPI)


def draw_feature_maps(
    network: Network, image: Tensor, questions: Sequence[str], answers: Sequence[str], output: Path
) -> None:
    """The image, and beside each question what the second FiLM layer makes of it: one row a question.

    image (3, 75, 75) uint8. Shown are the channels that the questions change most, each in one scale for all rows."""
    with torch.no_grad():
        which = torch.arange(len(questions))
        images = image.expand(len(questions), -1, -1, -1)
        scores, maps = network.look(images, network.encoder.prepare(questions), which)
    given, layer = scores.softmax(1), maps[1]
    shown = layer.std(0).mean((1, 2)).topk(SHOWN_CHANNELS).indices
    figure = Figure(figsize=(14, 1.6 * len(questions)), layout="constrained")
    figure.suptitle("One image under several questions: feature maps behind the second FiLM layer, "
                    "a channel in one colour scale", fontsize=12)  # fmt: skip
    axes = figure.subplots(len(questions), 2 + SHOWN_CHANNELS, width_ratios=[2.6] + [1] * (1 + SHOWN_CHANNELS))
    for row, (text, line) in enumerate(zip(questions, axes, strict=True)):
        best = int(given[row].argmax())
        half = text.rfind(" ", 0, 8 + len(text) // 2)
        said = f"{text[:half]}\n{text[half + 1 :]}\n\n{answers[best]} ({given[row, best]:.0%})"
        line[0].text(0.5, 0.5, said, ha="center", va="center", fontsize=11, parse_math=False)
        line[0].axis("off")
        line[1].imshow(image.permute(1, 2, 0).numpy())
        for channel, axis in zip(shown.tolist(), line[2:], strict=True):
            of_channel = layer[:, channel].numpy()
            axis.imshow(of_channel[row], vmin=of_channel.min(), vmax=of_channel.max(), cmap="viridis")
            if row == 0:
                axis.set_title(f"channel {channel}", fontsize=10)
        for axis in line[1:]:
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 1].set_title("image", fontsize=10)
    figure.savefig(output, dpi=DPI)


def draw_gammas(network: Network, split: Split, output: Path) -> None:
    """The gammas of each layer for each question of the split, on their two principal axes, coloured by kind."""
    kind_of = torch.zeros(len(split.texts), dtype=torch.int64)
    kind_of[split.text] = split.kind
    with torch.no_grad():
        question = network.encoder(network.encoder.prepare(split.texts))
        gammas = [1 + layer.generator(question)[0] for layer in network.layers]
    figure = Figure(figsize=(16, 4.6), layout="constrained")
    figure.suptitle("The gammas that each question makes, on their two principal axes: one point a question")
    axes = figure.subplots(1, len(gammas))
    for number, (axis, gamma) in enumerate(zip(axes, gammas, strict=True), 1):
        centred = gamma - gamma.mean(0)
        left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
        share = sizes[:2].square().sum() / sizes.square().sum()
        points = left[:, :2] * sizes[:2]
        for place, kind in enumerate(KINDS):
            of_kind = points[kind_of == place].numpy()
            marker = "o" if kind in NON_RELATIONAL else "^"
            axis.scatter(of_kind[:, 0], of_kind[:, 1], s=22, alpha=0.7, marker=marker, label=kind)
        axis.set(title=f"layer {number} ({share:.0%} of the variance)", xlabel="first axis")
    axes[0].set_ylabel("second axis")
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=len(KINDS))
    legend.set_title(f"circles: one object ({len(NON_RELATIONAL)} kinds); triangles: several ({len(RELATIONAL)} kinds)")
    figure.savefig(output, dpi=DPI)
