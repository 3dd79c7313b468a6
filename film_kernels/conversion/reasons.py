"""Why a site is left as it is, as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """`text` says why; `only_in_training`: it goes away by `model.eval()`, or by what `otherwise` advises."""

    text: str
    only_in_training: bool = False
    otherwise: str = ""


def in_words(reasons: Sequence[Reason], training: bool) -> str | None:
    """All of `reasons` in one sentence, or None without any. Advice is given only where it helps: model.eval() where
    the model is in `training` and nothing but that stands in the way."""
    found = list(dict.fromkeys(reasons))
    passing = [reason for reason in found if reason.only_in_training]
    lasting = [reason.text for reason in found if not reason.only_in_training]
    if not passing:
        return "; and ".join(lasting) or None
    texts = "; and ".join(reason.text for reason in passing)
    if lasting:
        return f"{texts}; and in eval mode too: {'; and '.join(lasting)}"
    advice = [*(["model.eval()"] if training else []), *dict.fromkeys(r.otherwise for r in passing if r.otherwise)]
    return f"{texts} ({', or '.join(advice)})" if advice else texts
