"""For programs written for transformers: its pipeline and its post-processing, with the server in place of the model.

    from florence2_client.drop_in import pipeline, post_process_generation
    pipe = pipeline("image-text-to-text", url="grpc://127.0.0.1:8001")

Everything after that stays: `pipe(images=image, text="<OD>")`, `post_process_generation(text, task, image_size)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from florence2.answers import TextAnswer
from florence2.errors import InvalidOption, InvalidPrompt
from florence2.parsing import Kind, parse, pieces_from_text
from florence2.tasks import BANNED_PHRASES, Grammar, task_from_name
from florence2_client.client import Client
from florence2_client.exchange import Question
from florence2_client.methods import DEFAULT_MODEL
from florence2_client.request import OPTIONS_BY_KEYWORD

PIPELINE = "image-text-to-text"


def pipeline(task: str = PIPELINE, model: str = DEFAULT_MODEL, **connection: Any) -> Pipeline:
    """Return what `transformers.pipeline("image-text-to-text", model=…)` returns, for a server.

    `connection`: the arguments of Client, such as `url`. `model`: the ensemble on the server.

    >>> pipe = pipeline("image-text-to-text", url="grpc://127.0.0.1:8001")
    >>> pipe("scene.png", "<OCR>", return_full_text=False)
    [{'input_text': '<OCR>', 'generated_text': 'HELLO TRITON'}]
    """
    if task != PIPELINE:
        raise InvalidOption(f"there is only the pipeline {PIPELINE!r}, not {task!r}")
    return Pipeline(Client(model=model, **connection))


@dataclass
class Pipeline:
    """Takes images and texts, and returns a list of dicts with `input_text` and `generated_text`."""

    client: Client

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        return_full_text: bool = True,
        skip_special_tokens: bool = True,
    ) -> list[dict[str, str]]:
        """Send all requests at once; raise the first error.

        images, text: one each, or lists of the same length. generate_kwargs: generation options of the contract.
        return_full_text: put the prompt in front of the generated text. skip_special_tokens: leave out `<loc_…>` and
        other tokens that are no text; without it the text is what `post_process_generation` takes.
        """
        many = isinstance(text, list | tuple)
        texts = list(text) if many else [text]
        pictured = list(images) if isinstance(images, list | tuple) else [images]
        if len(texts) != len(pictured) or None in texts or any(image is None for image in pictured):
            raise InvalidPrompt(f"there must be an image for each text, not {len(pictured)} for {len(texts)}")
        options = {name: value for name, value in (generate_kwargs or {}).items() if value is not None}
        if unknown := [name for name in options if name not in OPTIONS_BY_KEYWORD]:
            raise InvalidOption(f"the server has no option {unknown[0]!r}; it has {', '.join(OPTIONS_BY_KEYWORD)}")
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        questions = [Question(image, prompt) for image, prompt in zip(pictured, texts, strict=True)]
        found = []
        for reply in self.client.run_many(questions, **options):
            result = reply.unwrap()
            end = "</s>" if result.finish_reason == "stop" else ""
            generated = _words(result.text) if skip_special_tokens else f"</s><s>{result.text}{end}"
            prompt = str(reply.question.task)
            found.append({"input_text": prompt, "generated_text": prompt * return_full_text + generated})
        return found

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _words(text: str) -> str:
    return "".join(piece.text for piece in pieces_from_text(text) if piece.kind is Kind.TEXT)


def post_process_generation(text: str, task: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return `{task: answer}`, as `Florence2Processor.post_process_generation` does, without loading a processor.

    Coordinates are floats; transformers cuts them to integers. image_size: (width, height).

    >>> post_process_generation("star<loc_93><loc_278><loc_459><loc_706>", "<OD>", (1000, 1000))
    {'<OD>': {'bboxes': [[93.5, 278.5, 459.5, 706.5]], 'labels': ['star']}}
    """
    known = task_from_name(task)
    answer = parse(known.grammar if known else Grammar.TEXT, pieces_from_text(text), image_size, BANNED_PHRASES)
    return {task: answer.text if isinstance(answer, TextAnswer) else answer.to_json()}
