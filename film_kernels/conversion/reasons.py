"""Why a site is left as it is, as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """`text` says why; `only_in_training`: it goes away by `model.eval()`, or by what `otherwise` advises."""

    text: str
    only_in_training: bool = False
    otherwise: str = ""


def joined(reasons: Sequence[Reason]) -> Reason | None:
    """All of `reasons` as one, or None without any."""
    found = list(dict.fromkeys(reasons))
    passing = [reason for reason in found if reason.only_in_training]
    lasting = _and(reason.text for reason in found if not reason.only_in_training)
    if not passing:
        return Reason(lasting) if lasting else None
    texts = _and(reason.text for reason in passing)
    if lasting:
        return Reason(f"{texts}; and in eval mode too: {lasting}")
    return Reason(texts, True, ", or ".join(dict.fromkeys(r.otherwise for r in passing if r.otherwise)))


def in_words(reason: Reason | None, training: bool) -> str | None:
    """`reason` as a sentence. Advice is given only where it helps: model.eval() where the model is in `training`."""
    if reason is None:
        return None
    advice = ["model.eval()"] if training and reason.only_in_training else []
    advice += [reason.otherwise] if reason.otherwise else []
    return f"{reason.text} ({', or '.join(advice)})" if advice else reason.text


def _and(texts: Iterable[str]) -> str:
    return "; and ".join(texts)
