"""How far a net's answers are trusted for one person: learned elsewhere, they may be wrong here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

WORTH = 0.004
"""By which share of the loss an answer has to help before it is trusted."""
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def settled(
    trust: Tensor,
    names: Sequence[str],
    there: Sequence[bool],
    score: Callable[[], float],
    known: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Set each answer's weight to what fits this person's own pictures best.

    Args:
        trust: (N,) float32, changed in place: 0 for answers that no net gives.
        names: of the N answers.
        there: which of them some net gives.
        score: how badly the person's pictures are reproduced with the weights of now; lower is better.
        known: what was settled before: where to begin, and what stays unless something else helps; None: no trust.

    Returns:
        "trust_NAME" → its weight, of the answers that are given.
    """
    tried: dict[tuple[float, ...], float] = {}

    def at(values: tuple[float, ...]) -> float:
        if values not in tried:
            trust.copy_(trust.new_tensor(values))
            tried[values] = score()
        return tried[values]

    best = tuple((known or {}).get(f"trust_{name}", 0.0) for name in names)
    for _ in range(2):
        for i in (i for i, is_there in enumerate(there) if is_there):
            other = min(((*best[:i], v, *best[i + 1 :]) for v in STEPS), key=at)
            # A handful of pictures proves little: trust has to be earned.
            if at(other) < at(best) * (1 - WORTH):
                best = other
    trust.copy_(trust.new_tensor(best))
    return {f"trust_{name}": value for name, value, used in zip(names, best, there, strict=True) if used}
