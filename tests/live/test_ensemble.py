"""The whole served path against transformers, with plain tritonclient and urllib: the contract as clients see it."""

from __future__ import annotations

import base64
import functools
import io
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from PIL import Image
from transformers import Florence2ForConditionalGeneration
from tritonclient.utils import InferenceServerException

from florence2.contract import OPTIONS
from florence2.tasks import TASKS, Grammar
from tests.reference import DEMO, processor
from tests.unit.test_model_repository import CONTRACT_OUTPUTS
from tools.toy_model import evaluate, scenes
from tools.toy_model.answers import Example

SEEDS = (900_001, 900_002)  # no scene of training, evaluation or the demo
TYPES = {option.name: option.type for option in OPTIONS}
DTYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_, "BYTES": np.object_}
DEFAULT_LIMIT = 512


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def scene_image(seed: int) -> Image.Image:
    return scenes.make_scene(seed).draw(320)


def tensor(name: str, value, datatype: str) -> triton.InferInput:
    array = np.array([value], DTYPES[datatype])
    item = triton.InferInput(name, [1], datatype)
    item.set_data_from_numpy(array)
    return item


def ask(server, image: bytes, task: str | bytes, text: str | None = None, timeout: int | None = None, **options):
    """One ModelInfer with plain tritonclient; the outputs as a dict."""
    inputs = [tensor("IMAGE", image, "BYTES"), tensor("TASK", task, "BYTES")]
    inputs += [tensor("TEXT", text, "BYTES")] if text is not None else []
    inputs += [tensor(name, value, TYPES[name]) for name, value in options.items()]
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        answer = client.infer("florence2_ensemble", inputs, client_timeout=60, timeout=timeout)
    names = [output.name for output in answer.get_response().outputs]
    return {name: answer.as_numpy(name)[0 if name != "IMAGE_SIZE" else slice(None)] for name in names}


def refused(server, *args, **options) -> tuple[str, str]:
    """Status and message of a request that must fail."""
    with pytest.raises(InferenceServerException) as caught:
        ask(server, *args, **options)
    return caught.value.status(), caught.value.message()


@pytest.fixture(scope="module")
def transformers_model() -> Florence2ForConditionalGeneration:
    return Florence2ForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()


def transformers_answer(model, image: Image.Image, text: str, **options) -> tuple[list[int], str]:
    """The generated ids without the start token, and their text, special tokens kept."""
    inputs = processor(DEMO)(images=image, text=text, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, **{"max_new_tokens": DEFAULT_LIMIT, **options})[0, 1:].tolist()
    return ids, processor(DEMO).tokenizer.decode(ids, skip_special_tokens=False)


def examples(seed: int) -> dict[str, Example]:
    return scenes.make_examples(scenes.make_scene(seed), seed)


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


def truncated(value):
    """transformers cuts coordinates to integers."""
    if isinstance(value, dict):
        return {key: truncated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [truncated(item) for item in value]
    return int(value) if isinstance(value, float) else value


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
    """The answers are right, not only equal to transformers': twelve scenes that no training has seen."""
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


def test_raw_prompts_are_answered_as_plain_text(server, transformers_model):
    """What fine-tunes need: any other text is the prompt itself, and the key of the answer."""
    image = scene_image(SEEDS[0])
    answer = ask(server, png(image), "What does the image describe?")
    _, text = transformers_answer(transformers_model, image, "What does the image describe?")
    clean = text.replace("<s>", "").replace("</s>", "")
    assert json.loads(answer["RESULT"]) == {"What does the image describe?": clean}


def test_scores_are_the_mean_location_log_probs(server):
    """One score a box, between 0 and 1."""
    boxes = json.loads(ask(server, png(scene_image(SEEDS[0])), "<OD>")["RESULT"])["<OD>"]
    assert len(boxes["scores"]) == len(boxes["bboxes"]) > 0
    assert all(0 < score <= 1 for score in boxes["scores"])


@pytest.mark.parametrize("token", [token for token in TASKS if TASKS[token].grammar is not Grammar.TEXT])
def test_everything_located_has_a_confidence(server, token):
    """Next to its label, in every task, with greedy and with beam search."""
    seed, lists = SEEDS[0], {"confidences": ("labels", "bboxes_labels"), "polygons_confidences": ("polygons_labels",)}
    image, text = png(scene_image(seed)), examples(seed)[token].input
    for beams in (1, 3):
        answer = json.loads(ask(server, image, token, text, NUM_BEAMS=beams)["RESULT"])[token]
        for name, labels in lists.items():
            if name in answer:
                assert len(answer[name]) == len(next(answer[each] for each in labels if each in answer))
                assert all(0 < each <= 1 for each in answer[name])
        assert answer["confidences"] or answer.get("polygons_confidences")


def test_images_are_understood_in_every_wrapping(server):
    """Raw bytes, base64 text and a data URL are the same image."""
    raw = png(scene_image(SEEDS[0]))
    text = base64.b64encode(raw)
    answers = [ask(server, image, "<OD>")["RESULT"] for image in (raw, text, b"data:image/png;base64," + text)]
    assert answers[0] == answers[1] == answers[2]


def test_coordinates_are_of_the_image_as_it_is_seen(server):
    """A photo turned by its EXIF tag has its boxes where the viewer sees things."""
    upright = scene_image(SEEDS[0]).resize((400, 300))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # shown after a turn by 90 degrees clockwise
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    answer, expected = ask(server, buffer.getvalue(), "<OD>"), ask(server, png(upright), "<OD>")
    assert answer["IMAGE_SIZE"].tolist() == [400, 300]
    assert answer["RESULT"] == expected["RESULT"]


GOOD = png(scenes.make_scene(SEEDS[0]).draw(64))


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
def test_a_mistake_is_named_and_costs_no_other_request_anything(server, arguments, options, code, named):
    """INVALID_ARGUMENT, the code and one sentence, no traceback or path."""
    status, message = refused(server, *arguments, **options)
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert f"{code}: " in message
    assert any(word in message for word in named.split("|")), message
    assert "Traceback" not in message and ".py" not in message and "/1/" not in message


def test_more_new_tokens_than_positions_means_all_of_them(server):
    """A client need not know how many positions the checkpoint has."""
    most = ask(server, GOOD, "<CAPTION>", MAX_NEW_TOKENS=2**31 - 1)
    assert most["RESULT"] == ask(server, GOOD, "<CAPTION>")["RESULT"]


@pytest.mark.parametrize("model", ["florence2_ensemble/generate", "florence2_ensemble/infer"])
def test_the_code_comes_over_http_too(server, model):
    """Triton's generate extension answers every error with the same status."""
    image = base64.b64encode(b"junk").decode()
    if model.endswith("generate"):
        body = {"IMAGE": image, "TASK": "<OD>"}
    else:
        inputs = {"IMAGE": image, "TASK": "<OD>"}.items()
        body = {"inputs": [{"name": k, "shape": [1], "datatype": "BYTES", "data": [v]} for k, v in inputs]}
    request = urllib.request.Request(f"{server.http_url}/v2/models/{model}", json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert "INVALID_IMAGE: " in json.load(caught.value)["error"]


def test_bad_requests_in_a_crowd_cost_the_good_ones_nothing(server):
    """Forty at once, a third of them hostile: the others get the answers that they get without them."""
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


def call(server, model: str, tensors: dict[str, np.ndarray], outputs: list[str] | None = None):
    """One ModelInfer with any tensors; the outputs as a dict, or the status and message of the refusal."""
    inputs = []
    for name, array in tensors.items():
        datatype = next(kind for kind, dtype in DTYPES.items() if np.dtype(dtype) == array.dtype)
        inputs.append(triton.InferInput(name, array.shape, datatype).set_data_from_numpy(array))
    asked = [triton.InferRequestedOutput(name) for name in outputs or []]
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        try:
            answer = client.infer(model, inputs, outputs=asked or None, client_timeout=60)
        except InferenceServerException as error:
            return error.status().removeprefix("StatusCode."), error.message()
    return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def test_hostile_tensors_sent_straight_to_the_decoder_are_refused(server):
    """Composing models are callable too; NaN, overflow, wrong shapes and ids out of range stop at the door."""
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
    """Nothing but the decoder's own numbers makes an answer."""
    good = {
        "TOKENS": np.array([0, 9, 2], np.int32),
        "LOG_PROBS": np.zeros(3, np.float32),
        "IMAGE_SIZE": np.array([10, 10], np.int32),
        "ANSWER_KEY": np.array(["<OD>"], np.object_),
    }
    assert "RESULT" in call(server, "florence2_postprocess", good)
    assert call(server, "florence2_postprocess", good | change)[0] == "INVALID_ARGUMENT"


PLAIN = {"IMAGE": np.array([GOOD], np.object_), "TASK": np.array(["<OD>"], np.object_)}
LIMIT = {"MAX_NEW_TOKENS": np.array([8], np.int32)}


@pytest.mark.parametrize("name", ["IMAGE", "TASK"])
def test_a_missing_input_is_named(server, name):
    """By preprocess. Triton 24.10 only counts inputs, so an ensemble with an optional one in its place says
    "unexpected deadlock"; the code is right all the same.
    """
    tensors = {key: value for key, value in (PLAIN | LIMIT).items() if key != name}
    assert call(server, "florence2_ensemble", tensors)[0] == "INVALID_ARGUMENT"
    status, message = call(server, "florence2_preprocess", tensors)
    assert status == "INVALID_ARGUMENT" and f"{name} is missing" in message


@pytest.mark.parametrize("name", CONTRACT_OUTPUTS)
def test_every_output_can_be_requested_by_itself(server, name):
    """A client that wants one tensor gets that one."""
    assert list(call(server, "florence2_ensemble", PLAIN | LIMIT, [name])) == [name]


def generate(server, body: dict) -> tuple[int, dict]:
    """POST to Triton's generate extension."""
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/florence2_ensemble/generate", json.dumps(body).encode(), {"Connection": "close"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_generate_over_http_needs_only_json(server):
    """curl's way: base64 image in, all outputs as JSON."""
    image = png(scene_image(SEEDS[0]))
    status, answer = generate(server, {"IMAGE": base64.b64encode(image).decode(), "TASK": "<OD>", "NUM_BEAMS": 1})
    assert status == 200
    assert json.loads(answer["RESULT"]) == json.loads(ask(server, image, "<OD>", NUM_BEAMS=1)["RESULT"])
    assert answer["IMAGE_SIZE"] == [320, 320]


def test_generate_names_mistakes_too(server):
    """Triton makes every asynchronous error of generate a 400; the sentence is ours."""
    status, answer = generate(server, {"IMAGE": "bm90IGEgcGljdHVyZQ==", "TASK": "<OD>"})
    assert status == 400
    assert "image" in answer["error"]


def test_locations_that_the_model_spells_out_are_locations(server):
    """Fine-tunes spell `<loc_1000>`, which is no token: the box is found, with its score, and the text stays."""
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


def test_a_region_up_to_1000_is_the_whole_image(server):
    """Clients that scale to 0..1000 name the far edges so."""
    image, edge = png(scene_image(SEEDS[0])), "<loc_{0}><loc_{0}>"
    answers = [
        ask(server, image, "<REGION_TO_CATEGORY>" + edge.format(0) + edge.format(far))["RESULT"] for far in (999, 1000)
    ]
    assert answers[0] == answers[1]
