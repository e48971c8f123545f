"""Convert text to token ids and back with only a checkpoint's `tokenizer.json`, for preprocess and postprocess.

A thin layer over the `tokenizers` library, with the same results as transformers' `Florence2Processor`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from florence2.config import LOCATION_BINS
from florence2.errors import CheckpointError
from florence2.parsing import Piece, Token, pieces_from_text

LOWEST_LOG_PROB = -9999.0  # in JSON, which has no infinity
_LEFT_OUT = ("<s>", "</s>", "<pad>")
_NEEDED = (*_LEFT_OUT, "<loc_0>", f"<loc_{LOCATION_BINS - 1}>")


class Tokenizer:
    """A checkpoint's tokenizer. Raise CheckpointError if its file is missing, damaged, or lacks Florence-2's tokens."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raise CheckpointError if it is missing, damaged, or lacks Florence-2's tokens."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower type
            raise CheckpointError(f"the tokenizer {path} cannot be read: {error}") from error
        self._tokenizer.no_truncation()  # fine-tunes are often saved with these switched on
        self._tokenizer.no_padding()
        ids = {token.content: id for id, token in self._tokenizer.get_added_tokens_decoder().items()}
        missing = [token for token in _NEEDED if token not in ids]
        if missing:
            raise CheckpointError(f"the tokenizer {path} lacks {', '.join(missing)}")
        self._left_out = frozenset(ids[token] for token in _LEFT_OUT)
        self._decode_one = functools.cache(lambda id: self.decode([id]))

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of `<s>` text `</s>`, which follow the image tokens in the language model's input."""
        return self._tokenizer.encode(f"<s>{text}</s>", add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids with location tokens, but without `<s>`, `</s>` and `<pad>`."""
        kept = [id for id in ids if id not in self._left_out]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def pieces(
        self, ids: Sequence[int], log_probs: Sequence[float], log_masses: Sequence[float] | None = None
    ) -> list[Piece]:
        """Return generated ids, each with its log probability and log mass if known, as pieces for the parser."""
        masses: Sequence[float | None] = log_masses or [None] * len(ids)
        given = zip(ids, log_probs, masses, strict=True)
        tokens = [Token(self._decode_one(id), prob, mass) for id, prob, mass in given if id not in self._left_out]
        return pieces_from_text(self.decode(ids), tokens)

    def log_probs_as_json(self, ids: Sequence[int], log_probs: Sequence[float]) -> str:
        """Return `[[text, log probability], …]`, a pair for each generated id. Half a character is U+FFFD."""
        pairs = zip(map(self._decode_one, ids), log_probs, strict=True)
        return json.dumps(
            [[text, round(max(number, LOWEST_LOG_PROB), 6)] for text, number in pairs], ensure_ascii=False
        )
