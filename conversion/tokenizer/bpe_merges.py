"""Two forms of the order of BPE merges: scores of the results (sentencepiece) and a list of pairs (all others)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping


def merges_from_scores(score_of: Mapping[str, float]) -> list[tuple[str, str]]:
    """All splits of all pieces into two pieces, those of the highest score first."""
    ranked = sorted(score_of, key=lambda text: -score_of[text])
    return [
        (text[:cut], text[cut:])
        for text in ranked
        for cut in range(1, len(text))
        if text[:cut] in score_of and text[cut:] in score_of
    ]


def merges_follow_scores(merges: list[tuple[str, str]], score_of: Mapping[str, float]) -> bool:
    """Whether merges are all splits of all pieces into two pieces, those of the highest score first.

    Then BPE by merges and BPE by scores give the same ids, and the latter needs no merges.
    """
    given = [pair for pair in merges if pair[0] in score_of and pair[1] in score_of and pair[0] + pair[1] in score_of]
    scores = [score_of[left + right] for left, right in given]
    if any(after > before for before, after in itertools.pairwise(scores)):
        return False
    return set(given) == set(merges_from_scores(score_of))
