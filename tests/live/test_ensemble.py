"""The whole served path against transformers: the contract as clients see it."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Florence2ForConditionalGeneration

from florence2.tasks import TASKS, Grammar
from tests.live.plain_requests import GOOD, LIMIT, PLAIN, SEEDS, ask, call, examples, png, scene_image
from tests.reference import DEMO, processor, truncated
from tests.unit.test_model_repository import CONTRACT_OUTPUTS
from tools.toy_model import evaluate

DEFAULT_LIMIT = 512


@pytest.fixture(scope="module")
def transformers_model() -> Florence2ForConditionalGeneration:
    return Florence2ForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()


def transformers_answer(model, image: Image.Image, text: str, **options) -> tuple[list[int], str]:
    """The generated ids without the start token, and their text, special tokens kept."""
    inputs = processor(DEMO)(images=image, text=text, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, **{"max_new_tokens": DEFAULT_LIMIT, **options})[0, 1:].tolist()
    return ids, processor(DEMO).tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("token", TASKS)
def test_every_task_answers_as_transformers(server, transformers_model, token, seed):
    """Generated tokens, text, and the parsed answer up to transformers' integer coordinates."""
    if token not in examples(seed):
        pytest.skip("this scene has no words")
    question, image = examples(seed)[token], scene_image(seed)
    answer = ask(server, png(image), token, question.input)
    ids, text = transformers_answer(transformers_model, image, question.processor_text)
    assert answer["NUM_TOKENS"] == len(ids)
    clean = text.replace("<s>", "").replace("</s>", "")
    assert answer["GENERATED_TEXT"].decode() == clean
    expected = processor(DEMO).post_process_generation(text=text, task=token, image_size=image.size)
    assert truncated(without_scores(json.loads(answer["RESULT"]))) == expected
    assert answer["IMAGE_SIZE"].tolist() == list(image.size)
    assert answer["FINISH_REASON"] == b"stop"
    read = processor(DEMO)(text=question.processor_text, images=image)
    assert answer["NUM_PROMPT_TOKENS"] == len(read["input_ids"][0])
    tokens = json.loads(answer["TOKEN_LOG_PROBS"])
    assert len(tokens) == len(ids) and "".join(text for text, _ in tokens) == clean
    assert all(log_prob <= 0 for _, log_prob in tokens)


def without_scores(result: dict) -> dict:
    [(task, answer)] = result.items()
    ours = ("scores", "confidences", "polygons_confidences")
    return {task: {k: v for k, v in answer.items() if k not in ours} if isinstance(answer, dict) else answer}


@pytest.mark.parametrize(
    ("token", "measure", "at_least"),
    [
        ("<OD>", "f1", 0.85),
        ("<OD>", "mean_overlap", 0.75),
        ("<CAPTION>", "exact_share", 0.8),
        ("<OCR>", "exact_share", 0.8),
        ("<REGION_TO_CATEGORY>", "exact_share", 0.9),
        ("<REGION_TO_SEGMENTATION>", "mean_overlap", 0.7),
    ],
)
def test_answers_are_right(server, token, measure, at_least):
    """They are right on twelve scenes that no training has seen, not only equal to those of transformers."""
    scores = evaluate.Scores()
    for seed in range(910_000, 910_012):
        question = examples(seed)[token]
        answer = ask(server, png(scene_image(seed)), token, question.input, NUM_BEAMS=1)
        scores.answers += 1
        evaluate.MEASURES[token][0](scores, answer["GENERATED_TEXT"].decode(), question.target)
    assert getattr(scores, measure) >= at_least


@pytest.mark.parametrize(
    "options",
    [
        dict(NUM_BEAMS=1),
        dict(NUM_BEAMS=5, LENGTH_PENALTY=0.5, EARLY_STOPPING=False),
        dict(NUM_BEAMS=2, NO_REPEAT_NGRAM_SIZE=0),
        dict(NUM_BEAMS=4, MAX_NEW_TOKENS=6),
        dict(NUM_BEAMS=1, MAX_NEW_TOKENS=1),
        dict(NUM_BEAMS=3, NO_REPEAT_NGRAM_SIZE=2, LENGTH_PENALTY=-1.0),
        dict(NUM_BEAMS=1, MIN_NEW_TOKENS=60),
        dict(NUM_BEAMS=3, MIN_NEW_TOKENS=60, MAX_NEW_TOKENS=60),
        dict(NUM_BEAMS=1, REPETITION_PENALTY=1.8, NO_REPEAT_NGRAM_SIZE=0),
        dict(NUM_BEAMS=3, REPETITION_PENALTY=0.7, MIN_NEW_TOKENS=40),
        dict(TEMPERATURE=1.0, TOP_K=1),
        dict(TOP_P=0.0),
    ],
    ids=str,
)
def test_options_mean_what_they_mean_in_transformers(server, transformers_model, options):
    """Each option travels through the ensemble to the engine."""
    image = scene_image(SEEDS[0])
    answer = ask(server, png(image), "<DETAILED_CAPTION>", **options)
    lower = {name.lower(): value for name, value in options.items()}
    if {"TEMPERATURE", "TOP_P"} & set(options):
        lower |= dict(do_sample=True, num_beams=1)
    ids, text = transformers_answer(transformers_model, image, "<DETAILED_CAPTION>", **lower)
    assert answer["NUM_TOKENS"] == len(ids)
    assert answer["GENERATED_TEXT"].decode() == text.replace("<s>", "").replace("</s>", "")
    assert answer["FINISH_REASON"] == (b"length" if len(ids) == options.get("MAX_NEW_TOKENS") else b"stop")


def test_more_new_tokens_than_positions_means_all_of_them(server):
    """A client need not know how many positions the checkpoint has."""
    most = ask(server, GOOD, "<CAPTION>", MAX_NEW_TOKENS=2**31 - 1)
    assert most["RESULT"] == ask(server, GOOD, "<CAPTION>")["RESULT"]


def test_raw_prompts_are_answered_as_plain_text(server, transformers_model):
    """Fine-tunes need this. Any text that is no task is the prompt itself, and the key of the answer."""
    image = scene_image(SEEDS[0])
    answer = ask(server, png(image), "What does the image describe?")
    _, text = transformers_answer(transformers_model, image, "What does the image describe?")
    clean = text.replace("<s>", "").replace("</s>", "")
    assert json.loads(answer["RESULT"]) == {"What does the image describe?": clean}


def test_each_box_has_a_score(server):
    """Scores are between 0 and 1."""
    boxes = json.loads(ask(server, png(scene_image(SEEDS[0])), "<OD>")["RESULT"])["<OD>"]
    assert len(boxes["scores"]) == len(boxes["bboxes"]) > 0
    assert all(0 < score <= 1 for score in boxes["scores"])


@pytest.mark.parametrize("token", [token for token in TASKS if TASKS[token].grammar is not Grammar.TEXT])
def test_everything_located_has_a_confidence(server, token):
    """This holds for every task, with greedy and with beam search."""
    seed, lists = SEEDS[0], {"confidences": ("labels", "bboxes_labels"), "polygons_confidences": ("polygons_labels",)}
    image, text = png(scene_image(seed)), examples(seed)[token].input
    for beams in (1, 3):
        answer = json.loads(ask(server, image, token, text, NUM_BEAMS=beams)["RESULT"])[token]
        for name, labels in lists.items():
            if name in answer:
                assert len(answer[name]) == len(next(answer[each] for each in labels if each in answer))
                assert all(0 < each <= 1 for each in answer[name])
        assert answer["confidences"] or answer.get("polygons_confidences")


def test_an_image_may_be_bytes_base64_or_a_data_url(server):
    """The answers are the same."""
    raw = png(scene_image(SEEDS[0]))
    text = base64.b64encode(raw)
    answers = [ask(server, image, "<OD>")["RESULT"] for image in (raw, text, b"data:image/png;base64," + text)]
    assert answers[0] == answers[1] == answers[2]


def test_coordinates_refer_to_the_image_as_displayed(server):
    """The EXIF tag says how a photo is turned."""
    upright = scene_image(SEEDS[0]).resize((400, 300))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # shown after a turn by 90 degrees clockwise
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    answer, expected = ask(server, buffer.getvalue(), "<OD>"), ask(server, png(upright), "<OD>")
    assert answer["IMAGE_SIZE"].tolist() == [400, 300]
    assert answer["RESULT"] == expected["RESULT"]


def test_locations_that_the_model_spells_out_are_locations(server):
    """Fine-tunes spell `<loc_1000>`, which is no token. The box is found, with its score, and the text stays."""
    text = "star<loc_92><loc_277><loc_1000><loc_704>triangle<loc_536><loc_329><loc_883><loc_639>"
    ids = processor().tokenizer.encode(text, add_special_tokens=False)
    answer = call(server, "florence2_postprocess", {
        "TOKENS": np.array([0, *ids, 2], np.int32),
        "LOG_PROBS": np.zeros(len(ids) + 2, np.float32),
        "IMAGE_SIZE": np.array([1000, 1000], np.int32),
        "ANSWER_KEY": np.array(["<OD>"], np.object_),
    })  # fmt: skip
    assert answer["GENERATED_TEXT"][0].decode() == text
    assert json.loads(answer["RESULT"][0])["<OD>"] == {
        "bboxes": [[92.5, 277.5, 999.5, 704.5], [536.5, 329.5, 883.5, 639.5]],
        "labels": ["star", "triangle"],
        "scores": [1.0, 1.0],
    }


def test_a_location_of_1000_is_the_edge_of_the_image(server):
    """Clients that scale coordinates to 0..1000 send it, although the last location is 999."""
    image, edge = png(scene_image(SEEDS[0])), "<loc_{0}><loc_{0}>"
    answers = [
        ask(server, image, "<REGION_TO_CATEGORY>" + edge.format(0) + edge.format(far))["RESULT"] for far in (999, 1000)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", CONTRACT_OUTPUTS)
def test_every_output_can_be_requested_by_itself(server, name):
    """The response has no other."""
    assert list(call(server, "florence2_ensemble", PLAIN | LIMIT, [name])) == [name]
