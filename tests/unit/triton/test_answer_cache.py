"""An answer is kept for everything that it depends on, and for nothing that is drawn at random."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from florence2.contract import GenerationOptions
from florence2.engine.beam import Generation
from florence2.engine.sequence import Request
from florence2.triton.answer_cache import TOKEN_BYTES, AnswerCache, draws_anew
from florence2.triton.cache import ENTRY_BYTES, Cache

FEATURES = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
ANSWER = Generation((0, 5, 2), (-0.1, -0.2, -0.3), -0.2, "stop")
REQUEST = Request(FEATURES, [0, 9, 2], GenerationOptions())


def with_options(**options) -> Request:
    return dataclasses.replace(REQUEST, options=dataclasses.replace(REQUEST.options, **options))


@pytest.fixture
def answers() -> AnswerCache:
    return AnswerCache(Cache(2**20))


def test_equal_requests_get_the_answer_again(answers):
    """Whether their arrays are the same objects or not."""
    assert answers.get(answers.key(REQUEST)) is None
    answers.put(answers.key(REQUEST), ANSWER)
    again = Request(FEATURES.copy(), [0, 9, 2], GenerationOptions())
    assert answers.get(answers.key(again)) is ANSWER


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(REQUEST, image_features=np.nextafter(FEATURES, np.float32(9))),
        dataclasses.replace(REQUEST, image_features=FEATURES.reshape(16, 5)),
        dataclasses.replace(REQUEST, prompt_ids=[0, 8, 2]),
        dataclasses.replace(REQUEST, prompt_ids=[0, 92]),
        with_options(num_beams=1),
        with_options(max_new_tokens=7),
        with_options(length_penalty=1.5),
        with_options(early_stopping=False),
    ],
)
def test_other_requests_do_not_get_that_answer(answers, other):
    """They have other features, another prompt or another option."""
    answers.put(answers.key(REQUEST), ANSWER)
    assert answers.get(answers.key(other)) is None


def test_every_option_is_part_of_the_key(answers):
    """Also those that are added later."""
    keys = {answers.key(REQUEST)}
    for field in dataclasses.fields(GenerationOptions):
        value = getattr(REQUEST.options, field.name)
        changed = not value if isinstance(value, bool) else (value or 0) + 1
        keys.add(answers.key(with_options(**{field.name: changed}, **seeded(field.name))))
    assert len(keys) == 1 + len(dataclasses.fields(GenerationOptions))


def seeded(field: str) -> dict[str, int]:
    """Return the seed without which the answer would not be kept."""
    return {"seed": 7} if field == "temperature" else {}


def test_without_memory_nothing_is_kept():
    """That is the default, and it costs no hash."""
    answers = AnswerCache.of_this_server()
    assert answers.key(REQUEST) is None
    answers.put(None, ANSWER)
    assert answers.get(None) is None


def test_memory_is_bounded():
    """By an estimate for each token."""
    answers = AnswerCache(cache := Cache(3 * (ENTRY_BYTES + TOKEN_BYTES * len(ANSWER.tokens))))
    keys = [answers.key(with_options(max_new_tokens=number)) for number in range(1, 9)]
    for key in keys:
        answers.put(key, ANSWER)
    assert [answers.get(key) is ANSWER for key in keys] == [False] * 5 + [True] * 3
    assert cache.bytes == cache.most_bytes and cache.evictions == 5


def test_what_is_drawn_without_a_seed_is_never_kept(answers):
    """With a seed it is an answer like any other."""
    drawn = with_options(num_beams=1, temperature=0.7)
    assert draws_anew(drawn.options) and answers.key(drawn) is None
    assert answers.key(with_options(num_beams=1, temperature=0.7, seed=0))
    assert not draws_anew(REQUEST.options)
