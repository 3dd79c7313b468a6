"""Training: the loop, its checkpoints, and how it goes on after it was stopped."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from . import checkpoint
from .data import Split, Vocabulary, batches
from .errors import UserError
from .evaluation import accuracies, confusion, inputs_of
from .likeness import difference
from .model import loss_of
from .network import load_weights, make_network
from .processes import Processes

CHECKPOINT = "checkpoint.pt"
CLIP = 1.0  # norm of the gradient
MOVING = {"last_epoch", "_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step"}  # of the scheduler
WARM_UP = 0.1  # of all steps: the learning rate rises, and falls as a cosine after that (OneCycleLR)


class Run:
    """A training run: network, optimizer, learning rate, and what it has gone through so far.

    history: "loss" and "accuracy" of each step, "validation" (step, accuracies) of each epoch, and "seconds" and
    "cpu_seconds" that it has taken."""

    def __init__(self, settings: dict[str, Any], vocabulary: Vocabulary, train: Split, team: Processes) -> None:
        """Raises UserError where the settings do not fit the data or the processes."""
        self.settings, self.vocabulary, self.team = settings, vocabulary, team
        self.steps_an_epoch = len(train) // settings["batch"]
        if not self.steps_an_epoch:
            raise UserError(f"--batch {settings['batch']}: there are only {len(train)} questions to train on")
        if settings["batch"] % team.count:
            raise UserError(f"--batch {settings['batch']} cannot be shared out evenly among {team.count} processes")
        self.steps = self.steps_an_epoch * settings["epochs"]
        torch.manual_seed(settings["seed"])
        self.network = make_network(vocabulary, settings).to(team.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), settings["learning_rate"])
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings["learning_rate"], max(self.steps, 2), pct_start=WARM_UP
        )
        self.step = 0
        self.history: dict[str, Any] = {
            "loss": [], "accuracy": [], "validation": [], "seconds": 0.0, "cpu_seconds": 0.0
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """All that a run is made of, as `restore` takes it: tensors, numbers, texts, lists and dicts."""
        return {
            "settings": self.settings,
            "words": self.vocabulary.words,
            "answers": self.vocabulary.answers,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`, as `checkpoint.load` gives it.

        Raises UserError where it is of a run with other settings, another dataset or another network."""
        other = {name for name, value in self.settings.items() if state["settings"].get(name) != value}
        if other:
            told = ", ".join(f"{name} {state['settings'].get(name)!r}" for name in sorted(other))
            raise UserError(f"the run to resume has other settings: {told}")
        if (state["words"], state["answers"]) != (self.vocabulary.words, self.vocabulary.answers):
            raise UserError("the run to resume was of a dataset with another vocabulary")
        load_weights(self.network, state)
        if wrong := self._difference(state):
            raise UserError(f"the run to resume was another one: {wrong}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        self.step, self.history = state["step"], state["history"]

    def _difference(self, state: dict[str, Any]) -> str | None:
        """Where optimizer, learning rate and random numbers of `state` are not such as a run like this one has."""
        scheduler, step = self.scheduler.state_dict(), state["step"]
        if step > self.steps:
            return f"it has made {step} steps, of which there are {self.steps} here"
        own = self.optimizer.state_dict()
        if step:  # what Adam keeps from the first step on
            own["state"] = {
                place: {"step": torch.tensor(0.0), "exp_avg": of_one, "exp_avg_sq": of_one}
                for place, of_one in enumerate(p.detach().cpu() for p in self.network.parameters())
            }
        wrong = difference(state["optimizer"], own, "the optimizer's state")
        wrong = wrong or difference(state["scheduler"], scheduler, "the scheduler's state")
        wrong = wrong or difference(state["rng"], torch.get_rng_state(), "the state of the random numbers")
        if wrong:
            return wrong
        found = state["scheduler"]
        if found["total_steps"] != scheduler["total_steps"]:
            return "it was of a dataset of another size"
        if found["last_epoch"] != step or any(found[key] != scheduler[key] for key in found.keys() - MOVING):
            return "its scheduler was on another way"
        return None

    def train(self, train: Split, validation: Split, folder: Path, save_every: int) -> None:
        """Trains to the end, with a checkpoint in `folder` every `save_every` steps and at the end of each epoch."""
        model = DistributedDataParallel(self.network) if self.team.count > 1 else self.network
        questions = self.network.encoder.prepare(train.texts).to(self.team.device)
        clock = _Clock(self.history)
        with tqdm(total=self.steps, initial=self.step, unit="step", disable=not self.team.first) as bar:
            while self.step < self.steps:
                epoch, done = divmod(self.step, self.steps_an_epoch)
                bar.set_description(f"epoch {epoch + 1}/{self.settings['epochs']}")
                for chosen in batches(len(train), self.settings["batch"], self.settings["seed"], epoch, done):
                    mine = chosen[self.team.number :: self.team.count]
                    self._one_step(model, inputs_of(train, mine, questions, self.team.device), train.answer[mine])
                    bar.set_postfix(loss=_recent(self.history["loss"]), accuracy=_recent(self.history["accuracy"]))
                    bar.update()
                    if self.step % self.steps_an_epoch == 0:
                        self._validate(validation, bar)
                    if self.team.first and (self.step % save_every == 0 or self.step % self.steps_an_epoch == 0):
                        clock.read()
                        checkpoint.save(folder / CHECKPOINT, self.state())

    def _one_step(self, model: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], answers: Tensor) -> None:
        answers = answers.to(self.team.device)
        scores = model.train()(*inputs)
        loss = loss_of(scores, answers)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.scheduler.step()
        right = (scores.argmax(1) == answers).float().mean()
        of_all = self.team.mean(torch.stack([loss.detach(), right])).tolist()
        if not math.isfinite(of_all[0]):
            raise UserError(f"the loss is {of_all[0]} at step {self.step + 1}: try a smaller --learning-rate")
        self.step += 1
        self.history["loss"].append(of_all[0])
        self.history["accuracy"].append(of_all[1])

    def _validate(self, split: Split, bar: tqdm) -> None:
        if self.team.first:  # the others wait for it in their next step
            found = accuracies(confusion(self.network.eval(), split, self.team.device, len(self.vocabulary.answers)))
            self.history["validation"].append([self.step, found])
            both = ", ".join(f"{name} {found[name]:.1%}" for name in ("non-relational", "relational"))
            bar.write(f"{bar.desc.rstrip(': ')}, validation: {both}")


class _Clock:
    """Adds the time since it was last read to a run's history."""

    def __init__(self, history: dict[str, Any]) -> None:
        self.history = history
        self.last = time.perf_counter(), time.process_time()

    def read(self) -> None:
        now = time.perf_counter(), time.process_time()
        for name, new, old in zip(("seconds", "cpu_seconds"), now, self.last, strict=True):
            self.history[name] += new - old
        self.last = now


def _recent(values: list[float]) -> str:
    last = values[-100:]
    return f"{sum(last) / len(last):.3f}"
