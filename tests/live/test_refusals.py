"""What the server refuses, and that a refused request costs no other request anything."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.live.plain_requests import GOOD, LIMIT, PLAIN, SEEDS, ask, call, png, refused, scene_image

MISTAKES = [
    ((b"", "<OD>"), {}, "INVALID_IMAGE", "image"),
    ((b"junk", "<OD>"), {}, "INVALID_IMAGE", "image"),
    ((b"https://example.com/street.jpg", "<OD>"), {}, "INVALID_IMAGE", "URL"),
    ((GOOD[: len(GOOD) // 2], "<OD>"), {}, "INVALID_IMAGE", "image"),
    ((GOOD, ""), {}, "INVALID_PROMPT", "TASK|task"),
    ((GOOD, b"\xff\xfe"), {}, "INVALID_PROMPT", "UTF-8"),
    ((GOOD, "<OD>", "a dog"), {}, "INVALID_PROMPT", "<OD>"),
    ((GOOD, "<OPEN_VOCABULARY_DETECTION>"), {}, "INVALID_PROMPT", "<OPEN_VOCABULARY_DETECTION>"),
    ((GOOD, "<OPEN_VOCABULARY_DETECTION>", "  "), {}, "INVALID_PROMPT", "<OPEN_VOCABULARY_DETECTION>"),
    ((GOOD, "<OPEN_VOCABULARY_DETECTION>", "a </s> b"), {}, "INVALID_PROMPT", "</s>"),
    ((GOOD, "<REGION_TO_OCR>", "here"), {}, "INVALID_PROMPT", "region"),
    ((GOOD, "<REGION_TO_OCR>", "1,2,3"), {}, "INVALID_PROMPT", "region"),
    ((GOOD, "<REGION_TO_OCR>", "30,30,10,10"), {}, "INVALID_PROMPT", "corner"),
    ((GOOD, "<REGION_TO_OCR>", "1000,1000,2000,2000"), {}, "INVALID_PROMPT", "image"),
    ((GOOD, "<OPEN_VOCABULARY_DETECTION>", "dog " * 3000), {}, "INVALID_PROMPT", "token|long"),
    ((GOOD, "<OD>"), {"NUM_BEAMS": 0}, "INVALID_OPTION", "NUM_BEAMS"),
    ((GOOD, "<OD>"), {"NUM_BEAMS": 10_000}, "INVALID_OPTION", "NUM_BEAMS"),
    ((GOOD, "<OD>"), {"MAX_NEW_TOKENS": 0}, "INVALID_OPTION", "MAX_NEW_TOKENS"),
    ((GOOD, "<OD>"), {"MIN_NEW_TOKENS": 9, "MAX_NEW_TOKENS": 8}, "INVALID_OPTION", "MIN_NEW_TOKENS"),
    ((GOOD, "<OD>"), {"NO_REPEAT_NGRAM_SIZE": -1}, "INVALID_OPTION", "NO_REPEAT_NGRAM_SIZE"),
    ((GOOD, "<OD>"), {"REPETITION_PENALTY": 0.0}, "INVALID_OPTION", "REPETITION_PENALTY"),
    ((GOOD, "<OD>"), {"LENGTH_PENALTY": float("nan")}, "INVALID_OPTION", "LENGTH_PENALTY"),
    ((GOOD, "<OD>"), {"LENGTH_PENALTY": float("inf")}, "INVALID_OPTION", "LENGTH_PENALTY"),
    ((GOOD, "<OD>"), {"LENGTH_PENALTY": -5.0}, "INVALID_OPTION", "LENGTH_PENALTY"),
    ((GOOD, "<OD>"), {"TEMPERATURE": -1.0}, "INVALID_OPTION", "TEMPERATURE"),
    ((GOOD, "<OD>"), {"TEMPERATURE": float("nan")}, "INVALID_OPTION", "TEMPERATURE"),
    ((GOOD, "<OD>"), {"TOP_K": -1}, "INVALID_OPTION", "TOP_K"),
    ((GOOD, "<OD>"), {"TOP_P": 1.5}, "INVALID_OPTION", "TOP_P"),
    ((GOOD, "<OD>"), {"SEED": -1}, "INVALID_OPTION", "SEED"),
    ((GOOD, "<OD>"), {"TEMPERATURE": 0.5, "NUM_BEAMS": 3}, "INVALID_OPTION", "NUM_BEAMS"),
]


@pytest.mark.parametrize(("arguments", "options", "code", "named"), MISTAKES, ids=[row[2] for row in MISTAKES])
def test_a_mistake_is_named_in_one_sentence(server, arguments, options, code, named):
    """The status is INVALID_ARGUMENT. The message has the code, and no traceback or path."""
    status, message = refused(server, *arguments, **options)
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert f"{code}: " in message
    assert any(word in message for word in named.split("|")), message
    assert "Traceback" not in message and ".py" not in message and "/1/" not in message


@pytest.mark.parametrize("name", ["IMAGE", "TASK"])
def test_a_missing_input_is_named(server, name):
    """Preprocess names it. The ensemble gives the right code, but Triton 24.10 only counts its inputs: with an optional
    one in place of the missing one, it says "unexpected deadlock".
    """
    tensors = {key: value for key, value in (PLAIN | LIMIT).items() if key != name}
    assert call(server, "florence2_ensemble", tensors)[0] == "INVALID_ARGUMENT"
    status, message = call(server, "florence2_preprocess", tensors)
    assert status == "INVALID_ARGUMENT" and f"{name} is missing" in message


def test_bad_requests_in_a_crowd_cost_the_good_ones_nothing(server):
    """A third of forty concurrent requests is hostile. The others get the answers that they get without them."""
    images = [png(scene_image(seed)) for seed in SEEDS]
    tasks = ("<OD>", "<CAPTION>")
    expected = {(i, task): ask(server, images[i], task)["GENERATED_TEXT"] for i in (0, 1) for task in tasks}
    jobs = [(i % 2, tasks[i // 2 % 2], i % 3 == 0) for i in range(40)]

    def run(job):
        seed, task, hostile = job
        if hostile:
            return refused(server, b"\x89PNG junk", task)[0]
        return ask(server, images[seed], task)["GENERATED_TEXT"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(run, jobs))
    for (seed, task, hostile), answer in zip(jobs, answers, strict=True):
        assert answer == ("StatusCode.INVALID_ARGUMENT" if hostile else expected[seed, task])


def test_a_deadline_is_unavailable_and_its_neighbor_is_served(server):
    """The request's own timeout, in microseconds, reaches the engine."""
    image = png(scene_image(SEEDS[0]))
    neighbor = {}
    thread = threading.Thread(target=lambda: neighbor.update(ask(server, image, "<OD>")))
    thread.start()
    status, message = refused(server, image, "<MORE_DETAILED_CAPTION>", timeout=1)
    thread.join()
    assert status == "StatusCode.UNAVAILABLE"
    assert "time limit" in message
    assert neighbor["FINISH_REASON"] == b"stop"


def test_hostile_tensors_sent_straight_to_the_decoder_are_refused(server):
    """Models of the ensemble can be called directly, with NaN, overflow, wrong shapes and ids out of range."""
    good, prompt = np.zeros((37, 128), np.float32), np.array([0, 9, 2], np.int32)
    hostile = [
        (np.full((37, 128), np.nan, np.float32), prompt),
        (np.full((37, 128), 1e38, np.float32), prompt),
        (np.zeros((36, 128), np.float32), prompt),
        (good, np.array([], np.int32)),
        (good, np.array([0, -5, 2], np.int32)),
        (good, np.array([0, 2**31 - 1, 2], np.int32)),
        (good, np.zeros(5000, np.int32)),
    ]
    for features, ids in hostile:
        status, _ = call(server, "florence2_decoder", {"IMAGE_FEATURES": features, "PROMPT_IDS": ids})
        assert status == "INVALID_ARGUMENT"
    assert "TOKENS" in call(server, "florence2_decoder", {"IMAGE_FEATURES": good, "PROMPT_IDS": prompt})


@pytest.mark.parametrize(
    "change",
    [
        {"LOG_PROBS": np.zeros(2, np.float32)},
        {"LOG_PROBS": np.array([0, np.nan, 0], np.float32)},
        {"LOG_PROBS": np.array([0, 3000, 0], np.float32)},
        {"LOG_MASSES": np.zeros(2, np.float32)},
        {"LOG_MASSES": np.array([0, np.nan, 0], np.float32)},
        {"TOKENS": np.array([0, -1, 2], np.int32)},
        {"TOKENS": np.array([0, 2**31 - 1, 2], np.int32)},
        {"IMAGE_SIZE": np.array([0, 0], np.int32)},
    ],
    ids=str,
)
def test_hostile_tensors_sent_straight_to_postprocess_are_refused(server, change):
    """Only numbers that the decoder could have sent make an answer."""
    good = {
        "TOKENS": np.array([0, 9, 2], np.int32),
        "LOG_PROBS": np.zeros(3, np.float32),
        "IMAGE_SIZE": np.array([10, 10], np.int32),
        "ANSWER_KEY": np.array(["<OD>"], np.object_),
    }
    assert "RESULT" in call(server, "florence2_postprocess", good)
    assert call(server, "florence2_postprocess", good | change)[0] == "INVALID_ARGUMENT"
