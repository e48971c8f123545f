"""Translate between OpenAI's chat completions and Florence-2's requests and results. No I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from florence2.answers import TextAnswer
from florence2.errors import InvalidImage, InvalidPrompt, InvalidRequest
from florence2.tasks import TASKS
from florence2_client.gateway.schema import Message, Part
from florence2_client.objects import plain_text
from florence2_client.result import Result
from florence2_client.tasks import Prompt, parse_task


@dataclass(frozen=True)
class Asked:
    """What the messages ask for."""

    image_url: str
    task: str  # a free prompt is marked as a Prompt
    text: str | None


def read_messages(messages: Sequence[Message]) -> Asked:
    """Return what the last user message asks, about its image or the latest one before it.

    Its first text is the task; further texts are the task's own text. Messages of other roles mean nothing to
    Florence-2. Raise InvalidPrompt or InvalidImage if something is missing, InvalidRequest on other content.
    """
    users = [_parts(message) for message in messages if message.role == "user"]
    if not users:
        raise InvalidPrompt("there must be a message with the role user")
    for part in users[-1]:
        if part.type not in ("text", "image_url"):
            raise InvalidRequest(f"content of type {part.type[:40]!r} is not supported; send text or image_url")
    task, *rest = [text for part in users[-1] if (text := (part.text or "").strip())] or [""]
    if not task:
        raise InvalidPrompt("the user's message has no text: name a task, such as <OD> or caption")
    images = next(filter(None, map(_image_urls, reversed(users))), [])
    if len(images) != 1:
        raise InvalidImage(
            f"a request has one image, not {len(images)}"
            if images
            else "the user's message has no image: add a part of type image_url"
        )
    marked = Prompt(task) if parse_task(task).note else task  # no one would read the note here
    return Asked(images[0], marked, " ".join(rest) or None)


def _parts(message: Message) -> list[Part]:
    if isinstance(message.content, str):
        return [Part(type="text", text=message.content)]
    return message.content or []


def _image_urls(parts: Sequence[Part]) -> list[str]:
    urls = []
    for part in parts:
        if part.type == "image_url":
            if part.image_url is None:
                raise InvalidImage("a part of type image_url needs the field image_url")
            urls.append(part.image_url if isinstance(part.image_url, str) else part.image_url.url)
    return urls


def content_of(result: Result[Any]) -> str:
    """Return the answer as text: JSON for tasks that locate something, otherwise the words without locations."""
    if not isinstance(result.answer, TextAnswer):
        return json.dumps(result.answer.to_json(), ensure_ascii=False)
    return plain_text(result.answer.text) if result.task in TASKS else result.answer.text


def completion(result: Result[Any], head: dict[str, Any], *, logprobs: bool) -> dict[str, Any]:
    """Return the response. `head`: its `id`, `created` and `model`."""
    message = {"role": "assistant", "content": content_of(result), "refusal": None, "florence2": result.to_dict()}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _log_probs(result.token_log_probs) if logprobs else None,
        "finish_reason": result.finish_reason,
    }
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage_of(result)}


def usage_of(result: Result[Any]) -> dict[str, int]:
    """Return the tokens that were read and generated."""
    read = result.num_prompt_tokens or 0
    return {
        "prompt_tokens": read,
        "completion_tokens": result.num_tokens,
        "total_tokens": read + result.num_tokens,
    }


def _log_probs(pairs: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Return the tokens in OpenAI's form. Half a character has no bytes of its own."""
    content = [
        {
            "token": text,
            "logprob": log_prob,
            "bytes": None if "\ufffd" in text else list(text.encode()),
            "top_logprobs": [],
        }
        for text, log_prob in pairs
        if text
    ]
    return {"content": content, "refusal": None}


class Chunks:
    """The chunks of one streamed response.

    Text comes as it grows; the JSON of boxes and outlines comes with the last chunk, as half of it means nothing.
    """

    def __init__(self, head: dict[str, Any], *, logprobs: bool, include_usage: bool) -> None:
        """`head`: the `id`, `created` and `model` of every chunk."""
        self._head = {**head, "object": "chat.completion.chunk"}
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._sent = ""
        self._sent_tokens = 0

    def first(self) -> dict[str, Any]:
        """Return the chunk that opens the message."""
        return self._chunk({"role": "assistant", "content": ""})

    def growth(self, result: Result[Any]) -> dict[str, Any] | None:
        """Return the chunk with what an unfinished answer has gained, None if that is nothing yet."""
        if not isinstance(result.answer, TextAnswer):
            return None
        # What comes after a `<` may become a location token, and what comes after a space may be cut from the end.
        return self._more(result.answer.text.partition("<")[0].strip(), result)

    def last(self, result: Result[Any]) -> list[dict[str, Any]]:
        """Return the chunks that end the message."""
        chunks = [self._more(content_of(result), result)]
        ending = self._chunk({"florence2": result.to_dict()}, finish_reason=result.finish_reason)
        usage = {**self._head, "choices": [], "usage": usage_of(result)}
        return [chunk for chunk in (*chunks, ending, usage if self._include_usage else None) if chunk]

    def _more(self, text: str, result: Result[Any]) -> dict[str, Any] | None:
        if not text.startswith(self._sent) or text == self._sent:
            return None
        gained, self._sent = text[len(self._sent) :], text
        tokens = result.token_log_probs[self._sent_tokens :]
        self._sent_tokens = len(result.token_log_probs)
        return self._chunk({"content": gained}, logprobs=_log_probs(tokens) if self._logprobs else None)

    def _chunk(self, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        usage = {"usage": None} if self._include_usage else {}
        return {**self._head, "choices": [choice], **usage}
