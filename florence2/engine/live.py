"""The live requests, and the arrays that stay the same from step to step until a request comes or goes.

Shapes: N live requests, R rows of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence2.engine.backend import NO_DRAW, NO_TOKEN, Group, Layout, TokenLists
from florence2.engine.beam import Search

LEAST_TEMPERATURE = 1e-6  # below it, numbers leave float32's range, and the most likely token is drawn anyway


class Live:
    """The live searches, sorted by rows, and their options in arrays.

    Attributes:
        beams, max_lengths, first_rows: of each search, [N].
        ngram_size, min_new_tokens, suppresses_bos: options by row, [R].
        layout: where the searches are, and further options by row, for backends.
        no_tokens, none_forced, none_drawn: the values for a step without such rules.
    """

    def __init__(self, searches: Sequence[Search]) -> None:
        self.searches = list(searches)
        options = [search.options for search in searches]
        self.sampling = [search for search in searches if search.options.temperature]
        self.beams = np.array([each.num_beams for each in options], np.int64)
        self.max_lengths = np.array([search.max_length for search in searches], np.int64)
        self.first_rows = np.array([search.rows.start for search in searches], np.int64)
        starts = np.append(0, self.beams.cumsum())
        rows = (self.first_rows - starts[:-1]).repeat(self.beams) + np.arange(starts[-1])

        def by_row(values: Sequence[float], dtype: type) -> NDArray[Any]:
            return np.array(values, dtype).repeat(self.beams)

        self.ngram_size = by_row([each.no_repeat_ngram_size for each in options], np.int64)
        self.min_new_tokens = by_row([each.min_new_tokens for each in options], np.int64)
        self.suppresses_bos = by_row([each.suppress_repeated_bos for each in options], np.bool_)
        places = [(count, np.flatnonzero(self.beams == count)) for count in sorted(set(self.beams.tolist()))]
        self.layout = Layout(
            rows=rows,
            starts=starts,
            slots=np.array([search.slot for search in searches]),
            encoder_lengths=np.array([search.encoder_length for search in searches]),
            groups=[Group(requests, self.first_rows[requests, None] + np.arange(count)) for count, requests in places],
            penalties=by_row([each.repetition_penalty for each in options], np.float32),
            temperatures=by_row([max(each.temperature, LEAST_TEMPERATURE) for each in options], np.float32),
            top_ks=by_row([each.top_k for each in options], np.int64),
            top_ps=by_row([each.top_p for each in options], np.float32),
        )
        self.ngram_sizes = sorted({each.no_repeat_ngram_size for each in options} - {0})
        self.waits_for_eos = any(each.min_new_tokens for each in options)
        self.suppresses_any_bos = any(each.suppress_repeated_bos for each in options)
        self.penalizes = any(each.repetition_penalty != 1 for each in options)
        self.places = np.arange(len(rows))
        self.ends = np.arange(len(rows) + 1)
        self.no_tokens = TokenLists(np.zeros(0, np.int32), np.zeros(len(rows) + 1, np.int64))
        self.none_forced = np.full(len(rows), NO_TOKEN)
        self.none_drawn = np.full(len(rows), NO_DRAW)
