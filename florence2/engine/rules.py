"""Transformers' logits processors for the rows of all live requests: the tokens that are banned or penalized.

Shapes: R rows of the live requests, counted from 0; T positions, where a row has NO_TOKEN from its length on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from florence2.config import TokenConfig
from florence2.engine.backend import Integers, TokenLists
from florence2.engine.live import Live

Tokens = NDArray[np.int32]


def banned_tokens(live: Live, ids: TokenConfig, history: Tokens, lengths: Integers, last: Tokens) -> TokenLists:
    """Return the tokens that must not follow, given history [R, T], lengths [R] and last tokens [R]."""
    return _token_lists(live, list(_banned(live, ids, history, lengths, last)))


def penalized_tokens(live: Live, history: Tokens, lengths: Integers) -> TokenLists:
    """Return, once each, the tokens of the rows that have a penalty."""
    if not live.penalizes:
        return live.no_tokens
    found = []
    for row in (live.layout.penalties != 1).nonzero()[0]:
        tokens = np.unique(history[row, : lengths[row]])
        found.append((np.full(len(tokens), row), tokens))
    return _token_lists(live, found)


def _banned(
    live: Live, ids: TokenConfig, history: Tokens, lengths: Integers, last: Tokens
) -> Iterator[tuple[Integers, Tokens]]:
    """Yield, for one rule after the other, rows in order and a banned token for each."""
    for size in live.ngram_sizes:
        if len(live.ngram_sizes) == 1 and live.ngram_size.all():
            yield from _repeating(history, lengths, last, size)
            continue
        rows = (live.ngram_size == size).nonzero()[0]
        for places, tokens in _repeating(history[rows], lengths[rows], last[rows], size):
            yield rows[places], tokens
    if live.waits_for_eos:
        rows = (lengths <= live.min_new_tokens).nonzero()[0]
        yield rows, np.full(len(rows), ids.eos, np.int32)
    if live.suppresses_any_bos:
        rows = (live.suppresses_bos & (last == ids.bos)).nonzero()[0]
        yield rows, np.full(len(rows), ids.bos, np.int32)


def _repeating(history: Tokens, lengths: Integers, last: Tokens, size: int) -> Iterator[tuple[Integers, Tokens]]:
    """Yield rows, and for each a token that would make an n-gram of `size` occur twice. Yield nothing if none would."""
    if size == 1:
        rows, positions = (history >= 0).nonzero()
        yield rows, history[rows, positions]
        return
    same = history[:, size - 2 : -1] == last[:, None]
    found = same.ravel().nonzero()[0]  # faster than in two dimensions
    if not len(found):
        return
    rows, positions = np.divmod(found, same.shape[1])
    positions += size - 2
    following = history[rows, positions + 1]
    repeats = following >= 0  # or it is the last token itself
    for back in range(1, size - 1):
        repeats &= history[rows, positions - back] == history[rows, lengths[rows] - 1 - back]
    yield rows[repeats], following[repeats]


def _token_lists(live: Live, found: list[tuple[Integers, Tokens]]) -> TokenLists:
    if not found:
        return live.no_tokens
    rows, tokens = found[0]
    if len(found) > 1:
        rows, tokens = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = rows.argsort(kind="stable")
        rows, tokens = rows[order], tokens[order]
    return TokenLists(tokens, rows.searchsorted(live.ends)) if len(rows) else live.no_tokens
