"""What the answers are worth: the bundled checkpoint's, of all fifteen tasks, about scenes it was not trained on."""

from __future__ import annotations

import functools
import io
import statistics
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bench.compare.competitors import Ask
from tools.toy_model import scenes
from tools.toy_model.evaluate import DRAWN_SIZE, MEASURES, Scores

LONGEST = 150  # tokens, as the evaluation allows


class Question(NamedTuple):
    task: str
    picture: bytes
    prompt: str
    target: str


class Quality(NamedTuple):
    """`score` is the mean over the tasks of the first metric that the evaluation uses: exact answers, F1 or overlap."""

    answers: list[str]
    score: float

    def equal(self, reference: Quality) -> float:
        """The share of answers that are the reference's to the letter."""
        return statistics.mean(a == b for a, b in zip(self.answers, reference.answers, strict=True))


@functools.cache
def questions(scene_count: int) -> list[Question]:
    asked = []
    for seed in range(scene_count):
        scene = scenes.make_scene(seed)
        picture = io.BytesIO()
        scene.draw(DRAWN_SIZE).save(picture, "PNG")
        for task, example in scenes.make_examples(scene, seed).items():
            asked.append(Question(task, picture.getvalue(), example.processor_text, example.target))
    return asked


def measure(ask: Ask, scene_count: int, callers: int) -> Quality:
    asked = questions(scene_count)
    with ThreadPoolExecutor(callers) as pool:
        replies = list(pool.map(lambda question: ask(question.picture, question.prompt, LONGEST), asked))
    answers = [reply.text for reply in replies]
    scores: dict[str, Scores] = defaultdict(Scores)
    for question, answer in zip(asked, answers, strict=True):
        scores[question.task].answers += 1
        MEASURES[question.task][0](scores[question.task], answer, question.target)
    return Quality(answers, statistics.mean(MEASURES[task][1][0][1](score) for task, score in scores.items()))
