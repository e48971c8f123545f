"""The second cache, which is off by default: complete answers, which equal requests get again without the engine.

A key stands for all that an answer depends on. Each version of the model has its own process, and so its own cache.
"""

from __future__ import annotations

import hashlib

import numpy as np

from florence2.contract import GenerationOptions
from florence2.engine.beam import Generation
from florence2.engine.sequence import Request
from florence2.triton.cache import ANSWERS_VARIABLE, Cache

TOKEN_BYTES = 200  # its id, its log probability, and what else may be told of it: numbers of 32 bytes in Python


class AnswerCache:
    """Answers by the image features, the prompt and the options. For any thread."""

    def __init__(self, cache: Cache[Generation]) -> None:
        self._cache = cache

    @classmethod
    def of_this_server(cls) -> AnswerCache:
        """Return an empty cache of the size that the server was started with: usually none."""
        return cls(Cache.of_this_server(ANSWERS_VARIABLE, 0))

    def key(self, request: Request) -> bytes | None:
        """Return the key of a request, None if its answer is not to be kept."""
        if not self._cache.most_bytes or draws_anew(request.options):
            return None
        features = request.image_features
        found = hashlib.sha256(repr((features.shape, request.prompt_ids, request.options)).encode())
        found.update(np.ascontiguousarray(features).data)
        return found.digest()

    def get(self, key: bytes | None) -> Generation | None:
        """Return the answer to an equal request."""
        return self._cache.get(key) if key else None

    def put(self, key: bytes | None, answer: Generation) -> None:
        """Keep an answer, if it has a key."""
        if key:
            self._cache.put(key, answer, TOKEN_BYTES * len(answer.tokens))


def draws_anew(options: GenerationOptions) -> bool:
    """Return whether an equal request may get another answer: its tokens are drawn at random, without a seed."""
    return options.temperature > 0 and options.seed is None
