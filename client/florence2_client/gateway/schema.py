"""What `POST /v1/chat/completions` takes: the part of OpenAI's request that means something to Florence-2.

Every generation option of the contract is a field too (`num_beams`, ...), which the OpenAI SDK sends as `extra_body`.
Fields that change nothing, such as `user`, are ignored; `unsupported` names those that would change the answer.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from florence2.contract import OPTIONS
from florence2.errors import InvalidRequest

PYTHON_TYPES = {"BOOL": bool, "INT32": int, "INT64": int, "FP32": float}
# OpenAI's names for options of ours; the first that is given counts.
OTHER_NAMES = {"max_new_tokens": ("max_completion_tokens", "max_tokens")}
NO_EFFECT: dict[str, tuple[Any, ...]] = {  # the values with which an unsupported field changes nothing
    "n": (None, 1),
    "stop": (None, []),
    "tools": (None, []),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "top_logprobs": (None, 0),
}


class JsonBody(BaseModel):
    """The body of a request. NaN and infinity are not JSON, although Python reads them, and no field means them."""

    model_config = ConfigDict(allow_inf_nan=False)  # which a text such as "nan" could bring, too

    @model_validator(mode="before")
    @classmethod
    def _require_finite(cls, values: Any) -> Any:
        waiting = [values]
        while waiting:
            value = waiting.pop()
            if isinstance(value, float) and not math.isfinite(value):
                raise PydanticCustomError("not_finite", "the body has a number that is not finite")
            waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return values


class ImageUrl(BaseModel):
    """The address of an image."""

    url: str = Field(description="a `data:` URL, or an `https` URL on a host that the gateway allows")


class Part(BaseModel):
    """A part of a message's content: text or an image."""

    type: str = Field(description="`text` or `image_url`")
    text: str | None = None
    image_url: ImageUrl | str | None = None


class Message(BaseModel):
    """A message of the conversation."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    include_usage: bool = Field(False, description="end with a chunk that counts the tokens")


_Options = create_model(
    "_Options",
    __base__=JsonBody,
    **{  # type: ignore[call-overload]
        option.keyword: (PYTHON_TYPES[option.type] | None, Field(None, description=option.help)) for option in OPTIONS
    },
)


class ChatRequest(_Options):  # type: ignore[valid-type,misc]
    """A request: a conversation, of which the last user message counts, and options."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="one of `GET /v1/models`")
    messages: list[Message] = Field(
        min_length=1,
        description="The last user message holds the task as its text (`<OD>`, `caption`, `<TASK>text`, or a prompt of "
        "a fine-tune), and the image. A message without an image refers to the latest image before it",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(None, description="return the log probability of each generated token")
    max_tokens: int | None = Field(None, description="OpenAI's name for `max_new_tokens`")
    max_completion_tokens: int | None = Field(None, description="OpenAI's newer name for `max_new_tokens`")

    def options(self) -> dict[str, Any]:
        """Return the generation options that were given, by keyword."""
        given: dict[str, Any] = {}
        for option in OPTIONS:
            names = (option.keyword, *OTHER_NAMES.get(option.keyword, ()))
            values = [value for name in names if (value := getattr(self, name)) is not None]
            given.update((option.keyword, value) for value in values[:1])
        return given

    def require_supported(self) -> None:
        """Raise InvalidRequest if the request asks for something that Florence-2 does not have."""
        for name, value in (self.model_extra or {}).items():
            if name in NO_EFFECT and value not in NO_EFFECT[name]:
                raise InvalidRequest(f"{name} is not supported; leave it out")


class Model(BaseModel):
    """A model of the server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The models that requests can name."""

    object: Literal["list"] = "list"
    data: list[Model]


class Usage(BaseModel):
    """Tokens of a request; those of the prompt count the image's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(BaseModel):
    """The message with the answer."""

    role: Literal["assistant"] = "assistant"
    content: str = Field(description="text; the answers of tasks that locate something are JSON")
    refusal: None = None
    florence2: dict[str, Any] = Field(
        description="the parsed answer, with coordinates in pixels of the image as displayed, and its scores"
    )


class Choice(BaseModel):
    """The only choice."""

    index: Literal[0] = 0
    message: Answer
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The response, in OpenAI's form."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ErrorBody(BaseModel):
    """What went wrong, in one sentence, with our code."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorResponse(BaseModel):
    """An error, in OpenAI's form."""

    error: ErrorBody
