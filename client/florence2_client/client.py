"""Client: an image and a task in, a typed Result out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.errors import Cancelled, Florence2Error, Unavailable
from florence2_client.crops import CROPS_IN_FLIGHT, Crops
from florence2_client.description import DESCRIBE_SECONDS, Description, image_side
from florence2_client.exchange import (
    Asked,
    Exchange,
    InFlight,
    Question,
    Reply,
    Retry,
    questions_about,
    require_retry_for,
)
from florence2_client.images import ImageLike, encode_image
from florence2_client.methods import DEFAULT_MODEL, DEFAULT_RETRY_SECONDS, TaskMethods
from florence2_client.request import Options, Region, build_request
from florence2_client.result import Result
from florence2_client.results import Results, failure
from florence2_client.tasks import Prompted
from florence2_client.tiles import TILES_IN_FLIGHT, Tiled, require_tiles
from florence2_client.tiling import MODEL_SIDE
from florence2_client.transports import DEFAULT_URL, Tls, Transport, open_transport, parse_url

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Client(
    TaskMethods[
        Result[TextAnswer],
        Result[Boxes],
        Result[Quads],
        Result[Polygons],
        Result[BoxesAndPolygons],
        Result[Answer],
        Results[TextAnswer],
        Results[Boxes],
        Results[Polygons],
        Results[BoxesAndPolygons],
        Results[Answer],
    ]
):
    """A client of a Florence-2 server. It connects at the first request, keeps the connection, and is thread-safe.

    `url` is `grpc://host:port`, `http://host:port`, their TLS forms `grpcs://` and `https://`, or `host:port` for gRPC.
    `model` is the ensemble that requests go to. `headers` are sent with every request. When the server is overloaded or
    absent, requests are retried for up to `retry_for` seconds, within their own `timeout`; 0 disables retries.
    `transport` replaces the network.

    >>> with Client("grpc://127.0.0.1:8001") as client:
    ...     client.detect("scene.png", num_beams=1).labels
    ['star', 'triangle']
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model: str = DEFAULT_MODEL,
        *,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        retry_for: float = DEFAULT_RETRY_SECONDS,
        transport: Transport | None = None,
    ) -> None:
        """Check the URL, headers and TLS files; raise InvalidRequest if they cannot be used."""
        require_retry_for(retry_for)
        self.model = model
        self.retry_for = retry_for
        self._transport = transport or open_transport(parse_url(url, headers, tls))
        self._model_side: int | None = None  # once the server has told it
        self._closed = threading.Event()

    def run_many(
        self, asked: Iterable[Asked], *, concurrency: int = 16, ordered: bool = True, **options: Unpack[Options]
    ) -> Generator[Reply, None, None]:
        """Send many requests, at most `concurrency` at a time, and yield replies in order or as they come.

        `asked` holds Questions, or tuples of image, task and optionally text. It is read only as fast as replies are
        taken, so it may be endless. An error is the reply to its own question and ends nothing else. `options` apply to
        all questions; a question's own options take precedence.

        >>> pages = [("scene.png", task) for task in ("ocr", "caption")]
        >>> for reply in client.run_many(pages, concurrency=2):
        ...     print(reply.question.task, "->", reply.unwrap().answer.text)
        ocr -> HELLO TRITON
        caption -> a purple star and a green triangle with the text HELLO and TRITON
        """

        def start(question: Question) -> Future[Reply]:
            return pool.submit(self._reply, question, options)

        flight = InFlight(asked, start, concurrency, ordered)
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="florence2")
        try:
            for job in flight:
                if job is None:
                    wait(flight.running, return_when=FIRST_COMPLETED)
                else:
                    yield job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def stream(
        self, image: ImageLike, task: str, text: Region | None = None, **options: Unpack[Options]
    ) -> Generator[Result[Answer], None, None]:
        """Send a request as `run` does, and yield the answer as it grows; only the last result is `final`.

        The search is greedy. A box, quad or polygon appears once it is complete. Closing the generator cancels the
        request. The server must stream: `florence2 serve --stream`.

        >>> *_, last = client.stream("scene.png", "caption")
        >>> last.final, last.answer.text
        (True, 'a purple star and a green triangle with the text HELLO and TRITON')
        """
        exchange = self._exchange(image, task, text, options, stream=True)
        while True:
            try:
                with contextlib.closing(self._transport.stream(*exchange.attempt())) as responses:
                    for outputs in responses:
                        yield exchange.read(outputs)
                        if exchange.finished:
                            return
                raise exchange.incomplete()
            except Florence2Error as error:
                self._wait(exchange.wait_after(error), error)

    def close(self) -> None:
        """Close the connections; a second call does nothing. Requests in progress end with Cancelled.

        >>> client = Client("grpc://127.0.0.1:8001")
        >>> client.close()
        """
        if not self._closed.is_set():
            self._closed.set()
            self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reply(self, question: Question, options: Options) -> Reply:
        try:
            return Reply(question, self._answer(question, options), None)
        except Florence2Error as error:
            return Reply(question, None, error)

    def _exchange(
        self, image: ImageLike, task: str, text: Region | None, options: Options, *, stream: bool = False
    ) -> Exchange:
        if self._closed.is_set():
            raise RuntimeError("the client is closed")
        return Exchange(self.model, build_request(image, task, text, **options), self.retry_for, stream=stream)

    def _infer(self, image: ImageLike, task: str, text: Region | None, options: Options) -> Any:
        if options.get("tiles") is not None and (tiled := self._tiled(image, task, text, options)):
            replies = self.run_many(tiled.questions(), concurrency=TILES_IN_FLIGHT, ordered=False)
            with contextlib.closing(replies):
                return tiled.merged({reply.question.key: reply.unwrap() for reply in replies})
        exchange = self._exchange(image, task, text, {**options, "tiles": None})
        while True:
            try:
                return exchange.read(self._transport.infer(*exchange.attempt()))
            except Florence2Error as error:
                self._wait(exchange.wait_after(error), error)

    def _tiled(self, image: ImageLike, task: str, text: Region | None, options: Options) -> Tiled | None:
        side = MODEL_SIDE
        if require_tiles(image, task, options)[0] == "auto":
            retry = Retry(options.get("timeout"), self.retry_for)
            while self._model_side is None:
                try:
                    self._model_side = image_side(self._description(retry.remaining())) or MODEL_SIDE
                except Unavailable as error:
                    self._wait(retry.wait_after(error), error)
                except Florence2Error:  # a proxy may hide configurations
                    self._model_side = MODEL_SIDE
            side = self._model_side
        return Tiled.plan(image, task, text, options, side)

    def _description(self, seconds: float | None = None) -> Description:
        """Return what the server shows of its model; nothing if the transport is the user's own and cannot tell."""
        describe = getattr(self._transport, "describe", None)
        return describe(self.model, min(DESCRIBE_SECONDS, seconds or DESCRIBE_SECONDS)) if describe else {}

    def _infer_all(self, image: ImageLike, prompts: Sequence[Prompted], options: Options) -> Results[Any]:
        try:
            questions = questions_about(encode_image(image, options.get("max_side")), prompts, options)
        except Florence2Error as error:
            return Results(failure(task, text, error) for task, text in prompts)
        return Results(reply.as_result() for reply in self.run_many(questions))

    def _infer_crops(self, image: ImageLike, boxes: Iterable[Region], task: str, options: Options) -> Results[Any]:
        boxes = list(boxes)
        try:
            crops = Crops(image, boxes, task, options)
        except Florence2Error as error:
            return Results(failure(task, None, error) for _ in boxes)
        return crops.results(self.run_many(crops.questions(), concurrency=CROPS_IN_FLIGHT))

    def _wait(self, seconds: float, error: Florence2Error) -> None:
        if self._closed.wait(seconds):
            raise Cancelled("the client was closed") from error
