"""The quality that bench.compare measures: answers of the bundled checkpoint about scenes that are new to it."""

from __future__ import annotations

import functools
import io
import statistics
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bench.compare.loads import Ask
from tools.toy_model import scenes
from tools.toy_model.evaluate import DRAWN_SIZE, MEASURES, Scores

LONGEST = 150  # tokens of an answer whose quality is measured, as in the evaluation


class Example(NamedTuple):
    task: str
    image: bytes
    prompt: str
    target: str


class Quality(NamedTuple):
    """`score` is the mean over the tasks of the first metric that the evaluation uses: exact answers, F1 or overlap."""

    answers: list[str]
    score: float

    def equal(self, reference: list[str]) -> float:
        """Return the share of answers that are identical to the reference's."""
        return statistics.mean(a == b for a, b in zip(self.answers, reference, strict=True))


@functools.cache
def examples(scene_count: int) -> list[Example]:
    """Return all tasks about scenes that the bundled checkpoint was not trained on."""
    found = []
    for seed in range(scene_count):
        scene = scenes.make_scene(seed)
        encoded = io.BytesIO()
        scene.draw(DRAWN_SIZE).save(encoded, "PNG")
        for task, example in scenes.make_examples(scene, seed).items():
            found.append(Example(task, encoded.getvalue(), example.processor_text, example.target))
    return found


def measure_quality(ask: Ask, scene_count: int, clients: int) -> Quality:
    cases = examples(scene_count)
    with ThreadPoolExecutor(clients) as pool:
        answers = [answer.text for answer in pool.map(lambda case: ask(case.image, case.prompt, LONGEST), cases)]
    scores: dict[str, Scores] = defaultdict(Scores)
    for case, answer in zip(cases, answers, strict=True):
        scores[case.task].answers += 1
        MEASURES[case.task][0](scores[case.task], answer, case.target)
    return Quality(answers, statistics.mean(MEASURES[task][1][0][1](score) for task, score in scores.items()))
