"""The public contract as data: generation options, and the tensors of every model in the repository.

Each fact stands here once. `make generate` writes it into the config.pbtxt files, the OpenAPI description, the tables
of the docs, and the client's typed keyword arguments; the adapter, the command line, and the web page read it at run
time. Two more tables belong to the contract: the tasks (`tasks.TASKS`) and the error codes (`errors.ERROR_CODES`).

A new option is one row of `GenerationOptions` and the rule that uses it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from florence2.errors import InvalidOption

TensorType = Literal["STRING", "BOOL", "UINT8", "INT32", "INT64", "FP32"]

# An upper limit that each checkpoint has its own number for: decoder positions, so 1024 in base.
POSITIONS = "the model's positions"
NO_LIMIT = 2**31 - 1  # the largest INT32


# ---- generation options


@dataclass(frozen=True)
class Option:
    """One generation option as a client sees it."""

    keyword: str  # in Python and on the command line
    type: TensorType
    help: str
    default: str  # in words: most defaults are the checkpoint's
    minimum: float | None = None
    maximum: float | Literal["the model's positions"] | None = None

    @property
    def name(self) -> str:
        """Return the name of its tensor, such as `NUM_BEAMS`."""
        return self.keyword.upper()

    @property
    def range(self) -> str:
        """Return the allowed values in words; empty if the type says it all."""
        if self.minimum is None:
            return ""
        return f"{self.minimum:g} or more" if self.maximum is None else f"{self.minimum:g} to {_words(self.maximum)}"

    def check(self, value: float, positions: int) -> None:
        """Raise InvalidOption if `value` is out of range. `positions`: those of the model's decoder."""
        low = -math.inf if self.minimum is None else self.minimum
        high = positions if self.maximum == POSITIONS else math.inf if self.maximum is None else float(self.maximum)
        if not (math.isfinite(value) and low <= value <= high):
            limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise InvalidOption(f"{self.name} must be {limits}, not {value}")


def _words(limit: float | str) -> str:
    return limit if isinstance(limit, str) else f"{limit:g}"


def _option(type: TensorType, stock: Any, help: str, **row: Any) -> Any:
    """One row of the table of options. `stock`: Florence-2's value, for a checkpoint that has none of its own."""
    return dataclasses.field(default=stock, metadata={"type": type, "help": help, **row})


@dataclass(frozen=True)
class GenerationOptions:
    """The options of one request, complete and within range. Their names and meaning are those of transformers.

    Source: transformers `GenerationConfig`. `ModelConfig.generation_options` makes one from what a client sent.
    """

    # fmt: off
    max_new_tokens: int = _option(
        "INT32", NO_LIMIT, "generate at most this many tokens; more than the model's positions means all of them",
        default="the model's positions", minimum=1,
    )
    num_beams: int = _option("INT32", 3, "beams of the search; 1 is greedy", minimum=1, maximum=16)
    no_repeat_ngram_size: int = _option(
        "INT32", 3, "let no sequence of this many tokens occur twice; 0 turns the rule off",
        minimum=0, maximum=POSITIONS,
    )
    # Below -2, transformers prefers an empty answer to any real one.
    length_penalty: float = _option(
        "FP32", 1.0, "with beams, favor longer answers if above 0 and shorter ones if below", minimum=-2, maximum=10,
    )
    early_stopping: bool = _option("BOOL", True, "with beams, stop as soon as there are as many answers as beams")
    min_new_tokens: int = _option("INT32", 0, "generate at least this many tokens", minimum=0, maximum=POSITIONS)
    repetition_penalty: float = _option(
        "FP32", 1.0, "make generated tokens less likely to come again if above 1, more likely if below",
        minimum=0.01, maximum=100,
    )
    suppress_repeated_bos: bool = _option(
        "BOOL", False, "let no `<s>` follow another: prevents loops if NO_REPEAT_NGRAM_SIZE is 0",
    )
    temperature: float = _option(
        "FP32", 0.0, "above 0, draw each token at random; below 1, likely tokens even more often",
        default="1 with TOP_K or TOP_P, otherwise the checkpoint's, usually 0", minimum=0, maximum=100,
    )
    top_k: int = _option("INT32", 50, "draw only from this many most likely tokens; 0 is all", minimum=0)
    top_p: float = _option(
        "FP32", 1.0, "draw only from the most likely tokens that together are this probable", minimum=0, maximum=1,
    )
    seed: int | None = _option(
        "INT64", None, "with the same number, equal requests draw the same tokens",
        default="a new number each time", minimum=0,
    )
    # fmt: on


OPTIONS: tuple[Option, ...] = tuple(
    Option(field.name, **{"default": "the checkpoint's", **field.metadata})
    for field in dataclasses.fields(GenerationOptions)
)


# ---- tensors


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model, without a batch dimension. A dim of -1 is any length."""

    name: str
    type: TensorType
    dims: tuple[int, ...] = (1,)
    help: str = ""
    optional: bool = False
    streams_only: bool = False  # an input that is fed only where the answer is streamed
    direct_only: bool = False  # an output for clients that call the model by itself


IMAGE = Tensor("IMAGE", "STRING", help="encoded image (JPEG, PNG, WebP, …), its base64 text, or a `data:` URL")
TASK = Tensor("TASK", "STRING", help="a task token such as `<OD>`, or `<TASK>text`, or a prompt of your own")
TEXT = Tensor(
    "TEXT", "STRING", optional=True,
    help="the phrase or caption; a region as `<loc_x1><loc_y1><loc_x2><loc_y2>` or `x1,y1,x2,y2` in pixels",
)  # fmt: skip
OPTION_TENSORS = tuple(Tensor(option.name, option.type, help=option.help, optional=True) for option in OPTIONS)

RESULT = Tensor(
    "RESULT", "STRING",
    help="JSON `{task: answer}`, with coordinates in pixels of the image as displayed. `scores`: for each box, exp of "
    "the mean log probability of its four location tokens. Neighboring locations share the probability, so correct "
    "boxes have low scores too: use only their order, not a threshold. `confidences`: for each box, quad or outline, "
    "the model's probability that its label is right and that its edges lie within 3 % of the image's side",
)  # fmt: skip
GENERATED_TEXT = Tensor("GENERATED_TEXT", "STRING", help="the generated text, location tokens kept")
FINISH_REASON = Tensor("FINISH_REASON", "STRING", help="`stop`, or `length` if the answer was cut off")
NUM_TOKENS = Tensor("NUM_TOKENS", "INT32", help="number of generated tokens")
SEQUENCE_SCORE = Tensor("SEQUENCE_SCORE", "FP32", help="transformers' `sequences_scores`")
NUM_PROMPT_TOKENS = Tensor("NUM_PROMPT_TOKENS", "INT32", help="number of tokens read: the image's and the prompt's")
TOKEN_LOG_PROBS = Tensor(
    "TOKEN_LOG_PROBS",
    "STRING",
    help="JSON: the text and the log probability of each generated token, `[[text, number], …]`",
)
IMAGE_SIZE = Tensor("IMAGE_SIZE", "INT32", (2,), help="width and height that coordinates refer to")

INPUTS = (IMAGE, TASK, TEXT, *OPTION_TENSORS)
OUTPUTS = (
    RESULT,
    GENERATED_TEXT,
    FINISH_REASON,
    NUM_TOKENS,
    SEQUENCE_SCORE,
    IMAGE_SIZE,
    NUM_PROMPT_TOKENS,
    TOKEN_LOG_PROBS,
)

# Between the models. Dims are those of Florence-2-base; export writes the checkpoint's own.
PIXELS = Tensor("PIXELS", "UINT8", (768, 768, 3))
IMAGE_FEATURES = Tensor("IMAGE_FEATURES", "FP32", (24 * 24 + 1, 768))
PROMPT_IDS = Tensor("PROMPT_IDS", "INT32", (-1,))
ANSWER_KEY = Tensor("ANSWER_KEY", "STRING", help="the key of the answer in RESULT: the task token, or the whole prompt")
TICKET = Tensor("TICKET", "INT64", help="admission: the decoder returns the ticket that preprocess took; 0 is none")
PROMPT = Tensor("PROMPT", "STRING", direct_only=True, help="the prompt in words, for clients that call only this model")
TOKENS = Tensor("TOKENS", "INT32", (-1,))
LOG_PROBS = Tensor("LOG_PROBS", "FP32", (-1,))
LOG_MASSES = Tensor("LOG_MASSES", "FP32", (-1,), help="of each token or, if it is a location, of those near it")


def _optional(tensor: Tensor, **changes: Any) -> Tensor:
    return dataclasses.replace(tensor, optional=True, **changes)


@dataclass(frozen=True)
class Model:
    """One step of the ensemble. `role` is what its name ends in."""

    role: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


PREPROCESS = Model("preprocess", INPUTS, (PIXELS, PROMPT_IDS, IMAGE_SIZE, ANSWER_KEY, TICKET, PROMPT))
VISION = Model("vision", (PIXELS,), (IMAGE_FEATURES,))
DECODER = Model(
    "decoder",
    (
        IMAGE_FEATURES,
        PROMPT_IDS,
        *OPTION_TENSORS,
        _optional(ANSWER_KEY, help="names the task in the metrics"),
        _optional(TICKET, help="from preprocess; clients that call only this model have none"),
    ),
    (TOKENS, LOG_PROBS, LOG_MASSES, FINISH_REASON, NUM_TOKENS, SEQUENCE_SCORE, NUM_PROMPT_TOKENS),
)
POSTPROCESS = Model(
    "postprocess",
    (
        TOKENS,
        LOG_PROBS,
        _optional(LOG_MASSES, help="without them an answer has no confidences"),
        IMAGE_SIZE,
        ANSWER_KEY,
        # In the ensemble itself this wire would make Triton wait for postprocess even where a client asks only for an
        # output of the decoder.
        _optional(FINISH_REASON, streams_only=True, help="empty while the answer is streamed and incomplete"),
    ),
    # IMAGE_SIZE is passed on: Triton 24.10 fails a request that asks an ensemble only for an output of its first step.
    (RESULT, GENERATED_TEXT, TOKEN_LOG_PROBS, IMAGE_SIZE),
)
STEPS = (PREPROCESS, VISION, DECODER, POSTPROCESS)

# A stream's decoder answers many times, and Triton joins the nth output of each step that feeds an input. Preprocess
# answers once, so what postprocess needs of it has to come with every response of the decoder.
STREAM_DECODER = Model(
    DECODER.role,
    (*(tensor for tensor in DECODER.inputs if tensor.name != "ANSWER_KEY"), ANSWER_KEY, IMAGE_SIZE),
    (*DECODER.outputs, ANSWER_KEY, IMAGE_SIZE),
)
STREAM_STEPS = (PREPROCESS, VISION, STREAM_DECODER, POSTPROCESS)


@dataclass(frozen=True)
class Wiring:
    """How an ensemble feeds one of its steps: tensor names of the model to tensor names of the ensemble."""

    model: Model
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def wire(steps: tuple[Model, ...]) -> Iterator[Wiring]:
    """Yield the wiring of each step: an input reads what the latest earlier step of that name wrote.

    Inputs and outputs of the ensemble keep their upper-case names; what stays inside it has lower-case ones.
    """
    streams = steps is STREAM_STEPS
    written = {tensor.name: tensor.name for tensor in INPUTS}
    last_writer = {tensor.name: model for model in steps for tensor in model.outputs}
    public = {tensor.name for tensor in OUTPUTS}
    for model in steps:
        inputs = {t.name: written[t.name] for t in model.inputs if streams or not t.streams_only}
        outputs = {}
        for tensor in model.outputs:
            if tensor.direct_only:
                continue
            if tensor.name in public and last_writer[tensor.name] is model:
                outputs[tensor.name] = tensor.name
            else:
                again = "_again" if tensor.name in written else ""
                outputs[tensor.name] = tensor.name.lower() + again
        written |= outputs
        yield Wiring(model, inputs, outputs)
