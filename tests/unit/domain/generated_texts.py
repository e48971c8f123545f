"""Texts that a model may generate, and how the server reads them."""

from __future__ import annotations

from hypothesis import strategies as st

from florence2.parsing import parse
from florence2.tasks import Grammar
from florence2.tokenizer import Tokenizer
from tests.reference import DEMO, processor

BANNED = set(processor().post_processor.banned_grounding_tokens)
TOKENIZER = Tokenizer(DEMO / "tokenizer.json")
GRAMMARS_OF_LISTS = [grammar for grammar in Grammar if grammar is not Grammar.TEXT]
sizes = st.tuples(st.integers(1, 8000), st.integers(1, 8000))


def locations(minimum, maximum=None, step=1):
    """Return a strategy for texts of so many location tokens."""
    counts = st.integers(minimum // step, (maximum or minimum) // step).map(lambda count: count * step)
    runs = counts.flatmap(lambda count: st.lists(st.integers(0, 999), min_size=count, max_size=count))
    return runs.map(lambda run: "".join(f"<loc_{location}>" for location in run))


tokens = st.sampled_from(["<loc_0>", "<loc_999>", "<sep>", "<poly>", "</poly>", "<od>"]) | locations(1, 9)
words = st.sampled_from(["a", "é", "中", "\n", " ", "<", "it", "\x00", "<obj>", "<ground>", "<loc_>", "<loc_٣>"])
impossible = st.sampled_from(["<loc_1000>", "<loc_99999999999999999999>", "<s>", "</s>", "<pad>"])
ugly = st.lists(tokens | words | impossible).map("".join)


def read(grammar, text, size=(1000, 1000)):
    """Return the answer by token ids, as the server does; tokens that the vocabulary lacks are spelled out."""
    ids = TOKENIZER.encode_prompt(text)
    return parse(grammar, TOKENIZER.pieces(ids, [-1.0] * len(ids), [-1.0] * len(ids)), size, BANNED)
