"""OpenAI's messages in, OpenAI's completions out."""

from __future__ import annotations

import json

import pytest

from florence2.answers import Boxes, TextAnswer
from florence2.errors import InvalidImage, InvalidPrompt, InvalidRequest
from florence2_client.gateway.chat import Asked, Chunks, completion, content_of, read_messages
from florence2_client.gateway.schema import ChatRequest
from florence2_client.result import Result
from florence2_client.tasks import Prompt

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "florence2"}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def read(*messages, **more):
    return read_messages(ChatRequest.model_validate({"model": "m", "messages": messages, **more}).messages)


def result(answer, task="<CAPTION>", finish_reason="stop", pairs=()):
    return Result(
        task, answer, "as generated", finish_reason, 3, -0.5, (40, 30), num_prompt_tokens=10,
        token_log_probs=list(pairs),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user(text("<OD>"), IMAGE)], ("<OD>", None)),
        ([user(IMAGE, text(" caption "))], ("caption", None)),
        ([user(text("<OPEN_VOCABULARY_DETECTION>a dog"), IMAGE)], ("<OPEN_VOCABULARY_DETECTION>a dog", None)),
        ([user(text("find"), text("a dog"), IMAGE)], ("find", "a dog")),
        ([user(text("find"), text("a"), IMAGE, text("dog"))], ("find", "a dog")),
        # other roles mean nothing to the model, and a follow-up question is about the image before it
        ([{"role": "system", "content": "Be brief."}, user(text("<OCR>"), IMAGE)], ("<OCR>", None)),
        (
            [user(text("<OD>"), IMAGE), {"role": "assistant", "content": "a dog"}, {"role": "user", "content": "ocr"}],
            ("ocr", None),
        ),
        ([user(text("<OD>"), {"type": "image_url", "image_url": IMAGE["image_url"]["url"]})], ("<OD>", None)),
    ],
)
def test_the_last_message_of_the_user_is_read(messages, expected):
    assert read(*messages) == Asked(IMAGE["image_url"]["url"], *expected)


def test_a_sentence_is_a_free_prompt():
    asked = read(user(text("What is the date of the invoice?"), IMAGE))
    assert isinstance(asked.task, Prompt)
    assert not isinstance(read(user(text("<OD>"), IMAGE)).task, Prompt)


@pytest.mark.parametrize(
    ("messages", "kind", "words"),
    [
        ([{"role": "system", "content": "caption"}], InvalidPrompt, "user"),
        ([user(IMAGE)], InvalidPrompt, "name a task"),
        ([user(text(" "), IMAGE)], InvalidPrompt, "name a task"),
        ([{"role": "user", "content": "caption"}], InvalidImage, "has no image"),
        ([{"role": "user"}], InvalidPrompt, "name a task"),
        ([user(text("od"), IMAGE, IMAGE)], InvalidImage, "one image, not 2"),
        ([user(text("od"), {"type": "image_url"})], InvalidImage, "image_url"),
        ([user(text("od"), IMAGE, {"type": "input_audio"})], InvalidRequest, "input_audio"),
        ([user(text("captoin"), IMAGE)], InvalidPrompt, "did you mean caption"),
    ],
)
def test_mistakes_are_named(messages, kind, words):
    with pytest.raises(kind, match=words):
        read(*messages)


def test_options_have_our_names_and_those_of_openai():
    body = {"model": "m", "messages": [user(text("od"), IMAGE)]}
    assert ChatRequest.model_validate(body).options() == {}
    assert ChatRequest.model_validate(body | {"max_tokens": 5, "num_beams": 1}).options() == {
        "max_new_tokens": 5, "num_beams": 1,
    }  # fmt: skip
    assert ChatRequest.model_validate(body | {"max_tokens": 5, "max_completion_tokens": 7}).options() == {
        "max_new_tokens": 7
    }


@pytest.mark.parametrize(
    "field", [{"n": 2}, {"stop": ["."]}, {"tools": [{}]}, {"logit_bias": {"1": 1}}, {"top_logprobs": 3},
              {"response_format": {"type": "json_object"}}, {"presence_penalty": 0.5}, {"modalities": ["audio"]}],
)  # fmt: skip
def test_fields_that_would_change_the_answer_are_refused(field):
    body = ChatRequest.model_validate({"model": "m", "messages": [user(text("od"), IMAGE)], **field})
    with pytest.raises(InvalidRequest, match=next(iter(field))):
        body.require_supported()


@pytest.mark.parametrize("field", [{"n": 1}, {"stop": None}, {"tools": []}, {"user": "me"}, {"presence_penalty": 0}])
def test_fields_that_change_nothing_are_ignored(field):
    ChatRequest.model_validate({"model": "m", "messages": [user(text("od"), IMAGE)], **field}).require_supported()


def test_boxes_are_json_and_text_is_text():
    assert json.loads(content_of(result(Boxes([[1, 2, 3, 4]], ["dog"], [0.5]), "<OD>"))) == {
        "bboxes": [[1, 2, 3, 4]], "labels": ["dog"], "scores": [0.5],
    }  # fmt: skip
    region = TextAnswer("dog<loc_1><loc_2><loc_3><loc_4>")
    assert content_of(result(region, "<REGION_TO_CATEGORY>")) == "dog"
    assert content_of(result(region, "a prompt of a fine-tune")) == region.text


def test_a_completion_has_the_form_of_openai():
    pairs = [("a", -0.1), (" dog", -0.25), ("\ufffd", -2.0), ("", -0.5)]
    found = completion(result(TextAnswer("a dog"), finish_reason="length", pairs=pairs), HEAD, logprobs=True)
    [choice] = found["choices"]
    assert choice["message"]["content"] == "a dog" and choice["finish_reason"] == "length"
    assert choice["message"]["florence2"]["image_size"] == [40, 30]
    assert found["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    assert [(each["token"], each["logprob"]) for each in choice["logprobs"]["content"]] == pairs[:3]
    assert choice["logprobs"]["content"][1]["bytes"] == list(b" dog")
    assert choice["logprobs"]["content"][2]["bytes"] is None
    assert completion(result(TextAnswer("")), HEAD, logprobs=False)["choices"][0]["logprobs"] is None


def streamed(results, **options):
    chunks = Chunks(HEAD, **{"logprobs": False, "include_usage": False, **options})
    return [chunks.first(), *filter(None, map(chunks.growth, results[:-1])), *chunks.last(results[-1])]


def test_text_is_streamed_as_it_grows():
    """What may still change, such as the beginning of a location, waits."""
    growing = ["", "a", "a ", "a dog", "a dog<loc_1>", "a dog<loc_1><loc_2><loc_3><loc_4>"]
    results = [result(TextAnswer(words), "<REGION_TO_CATEGORY>") for words in growing]
    chunks = streamed(results)
    contents = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert contents == ["", "a", " dog", None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"][0]["delta"]["florence2"]["answer"] == growing[-1]


def test_boxes_come_with_the_last_chunk_and_usage_behind_it():
    answers = [Boxes([], []), Boxes([[1, 2, 3, 4]], ["dog"])]
    results = [result(answer, "<OD>", pairs=[("dog", -0.5)]) for answer in answers]
    first, content, ending, usage = streamed(results, include_usage=True, logprobs=True)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""} and first["usage"] is None
    assert json.loads(content["choices"][0]["delta"]["content"])["labels"] == ["dog"]
    assert content["choices"][0]["logprobs"]["content"][0]["token"] == "dog"
    assert ending["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 13
