"""Client: a picture and a task in, a typed Result out. The library's front door."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.errors import Cancelled, Florence2Error, ModelNotFound, Unavailable
from florence2_client.images import Picture
from florence2_client.many import Asked, InFlight, Question, Reply, questions
from florence2_client.methods import DEFAULT_MODEL, DEFAULT_RETRY_SECONDS, Surface
from florence2_client.request import Options, Region, build_request
from florence2_client.result import Result, result_from_tensors
from florence2_client.retry import Patience
from florence2_client.streaming import broken_off, does_not_stream, stream_model
from florence2_client.transports.base import DEFAULT_URL, Tls, Transport, open_transport, parse_url

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Client(
    Surface[
        Result[TextAnswer], Result[Boxes], Result[Quads], Result[Polygons], Result[BoxesAndPolygons], Result[Answer]
    ]
):
    """Asks a Florence-2 server. Connects at the first request, keeps the connection, and serves many threads.

    `url` is `grpc://host:port`, `http://host:port`, their TLS forms `grpcs://` and `https://`, or `host:port` for gRPC.
    `model` is the ensemble to ask. `headers` go with every request. A server that is busy or away is asked again for up
    to `retry_for` seconds, within the request's `timeout`; 0 asks once. `transport` takes the place of the network.

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
        self.model = model
        self.retry_for = retry_for
        self._transport = transport or open_transport(parse_url(url, headers, tls))
        self._closed = threading.Event()

    def run_many(
        self, asked: Iterable[Asked], *, concurrency: int = 16, ordered: bool = True, **options: Unpack[Options]
    ) -> Iterator[Reply]:
        """Asks many questions, at most `concurrency` at a time, and yields replies as they come or in order.

        `asked` holds Questions, or tuples of image, task and perhaps text. It is read only as fast as answers are
        taken, so it may be endless. An error is the reply to its question and ends nothing. `options` are for all
        questions; a question's own go first.

        >>> pages = [("scene.png", task) for task in ("ocr", "caption")]
        >>> for reply in client.run_many(pages, concurrency=2):
        ...     print(reply.question.task, "->", reply.unwrap().answer.text)
        ocr -> HELLO TRITON
        caption -> a purple star and a green triangle with the text HELLO and TRITON
        """
        flight: InFlight[Future[Reply]] = InFlight(concurrency, ordered)
        waiting = questions(asked)
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="florence2")

        def start(question: Question) -> Future[Reply]:
            return pool.submit(self._reply, question, options)

        try:
            while True:
                flight.fill(waiting, start)
                job = flight.take_finished()
                if job is not None:
                    flight.fill(waiting, start)  # the server works on while the caller looks at this one
                    yield job.result()
                elif running := flight.running:
                    wait(running, return_when=FIRST_COMPLETED)
                else:
                    return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def stream(
        self, image: Picture, task: str, text: Region | None = None, **options: Unpack[Options]
    ) -> Generator[Result[Answer], None, None]:
        """As `run`, but yields the answer as it grows; the last result is the whole one, and only it is `final`.

        The search is greedy. A box, quad or outline is there when it is complete. Closing the generator gives the
        request up. Needs a server that streams: `florence2 serve --stream`.

        >>> *_, last = client.stream("scene.png", "caption")
        >>> last.final, last.answer.text
        (True, 'a purple star and a green triangle with the text HELLO and TRITON')
        """
        if self._closed.is_set():
            raise RuntimeError("the client is closed")
        request = build_request(image, task, text, **options)
        model = stream_model(self.model)
        patience, result = Patience(request.timeout, self.retry_for), None
        while True:
            try:
                with contextlib.closing(
                    self._transport.stream(model, request.tensors, patience.remaining())
                ) as arrivals:
                    for outputs in arrivals:
                        result = result_from_tensors(outputs, request.picture_size)
                        yield result
                        if result.final:
                            return
                raise broken_off()
            except ModelNotFound as error:
                raise does_not_stream(model) from error
            except Unavailable as error:
                if result is not None:
                    raise
                if self._closed.wait(patience.wait_after(error)):
                    raise Cancelled("the client was closed") from error

    def close(self) -> None:
        """Closes the connections; a second call does nothing. Questions under way end with Cancelled.

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
            return Reply(question, self._asked(question, options), None)
        except Florence2Error as error:
            return Reply(question, None, error)

    def _ask(self, image: Picture, task: str, text: Region | None, options: Options) -> Any:
        if self._closed.is_set():
            raise RuntimeError("the client is closed")
        request = build_request(image, task, text, **options)
        patience = Patience(request.timeout, self.retry_for)
        while True:
            try:
                outputs = self._transport.infer(self.model, request.tensors, patience.remaining())
                return result_from_tensors(outputs, request.picture_size)
            except Unavailable as error:
                if self._closed.wait(patience.wait_after(error)):
                    raise Cancelled("the client was closed") from error
