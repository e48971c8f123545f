"""The options that every request takes by name."""

from __future__ import annotations

from typing import TypedDict


class Options(TypedDict, total=False):
    """Keyword arguments of every request. An option that is left out, or None, keeps its default."""

    # generated: options
    max_new_tokens: int | None  # generate at most this many tokens; more than the model's positions means all of them
    num_beams: int | None  # beams of the search; 1 is greedy
    no_repeat_ngram_size: int | None  # let no sequence of this many tokens occur twice; 0 turns the rule off
    length_penalty: float | None  # with beams, favor longer answers if above 0 and shorter ones if below
    early_stopping: bool | None  # with beams, stop as soon as there are as many answers as beams
    min_new_tokens: int | None  # generate at least this many tokens
    repetition_penalty: float | None  # make generated tokens less likely to come again if above 1, more likely if below
    # end of generated: options
    timeout: float | None  # seconds for the whole call, retries included
    max_side: int | None  # scale images with a longer side down to this many pixels before they are sent
