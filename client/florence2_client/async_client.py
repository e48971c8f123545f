"""AsyncClient: Client for asyncio, with the same methods."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.errors import Florence2Error, ModelNotFound, Unavailable
from florence2_client.images import Picture
from florence2_client.many import Asked, InFlight, Question, Reply, questions
from florence2_client.methods import DEFAULT_MODEL, DEFAULT_RETRY_SECONDS, Surface
from florence2_client.request import Options, Region, build_request
from florence2_client.result import Result, result_from_tensors
from florence2_client.retry import Patience
from florence2_client.streaming import broken_off, does_not_stream, stream_model
from florence2_client.transports.base import DEFAULT_URL, AsyncTransport, Tls, open_async_transport, parse_url

if TYPE_CHECKING:
    from typing_extensions import Unpack

AnswerT = TypeVar("AnswerT", bound=Answer)
Awaited: TypeAlias = Coroutine[Any, Any, Result[AnswerT]]


class AsyncClient(
    Surface[
        Awaited[TextAnswer],
        Awaited[Boxes],
        Awaited[Quads],
        Awaited[Polygons],
        Awaited[BoxesAndPolygons],
        Awaited[Answer],
    ]
):
    """`Client` for asyncio: the same arguments and methods, to be awaited, in the event loop of its first request.

    Cancelling a task gives its request up. Pictures are read and encoded in threads.

    >>> import asyncio
    >>> async def main():
    ...     async with AsyncClient("grpc://127.0.0.1:8001") as client:
    ...         result = await client.detect("scene.png", num_beams=1)
    ...         print(result.labels)
    >>> asyncio.run(main())
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
        transport: AsyncTransport | None = None,
    ) -> None:
        self.model = model
        self.retry_for = retry_for
        self._address = parse_url(url, headers, tls)
        self._transport = transport
        self._closed = False

    async def run_many(
        self, asked: Iterable[Asked], *, concurrency: int = 16, ordered: bool = True, **options: Unpack[Options]
    ) -> AsyncGenerator[Reply, None]:
        """As `Client.run_many`, for `async for`.

        >>> import asyncio
        >>> async def main():
        ...     async with AsyncClient("grpc://127.0.0.1:8001") as client:
        ...         async for reply in client.run_many([("scene.png", "od"), ("scene.png", "ocr_with_region")]):
        ...             print(reply.unwrap().labels)
        >>> asyncio.run(main())
        ['star', 'triangle']
        ['HELLO', 'TRITON']
        """
        flight: InFlight[asyncio.Task[Reply]] = InFlight(concurrency, ordered)
        waiting = questions(asked)

        def start(question: Question) -> asyncio.Task[Reply]:
            return asyncio.create_task(self._reply(question, options))

        try:
            while True:
                flight.fill(waiting, start)
                job = flight.take_finished()
                if job is not None:
                    flight.fill(waiting, start)
                    yield job.result()
                elif running := flight.running:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                else:
                    return
        finally:
            for job in flight.jobs:
                job.cancel()
            await asyncio.gather(*flight.jobs, return_exceptions=True)

    async def stream(
        self, image: Picture, task: str, text: Region | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Result[Answer], None]:
        """As `Client.stream`, for `async for`.

        >>> import asyncio
        >>> async def main():
        ...     async with AsyncClient("grpc://127.0.0.1:8001") as client:
        ...         results = [result async for result in client.stream("scene.png", "ocr")]
        ...         print(results[-1].final, results[-1].answer.text)
        >>> asyncio.run(main())
        True HELLO TRITON
        """
        transport = self._opened()
        request = await asyncio.to_thread(build_request, image, task, text, **options)
        model = stream_model(self.model)
        patience, result = Patience(request.timeout, self.retry_for), None
        while True:
            try:
                arrivals = transport.stream(model, request.tensors, patience.remaining())
                async with contextlib.aclosing(arrivals):
                    async for outputs in arrivals:
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
                await asyncio.sleep(patience.wait_after(error))

    async def close(self) -> None:
        """Closes the connections; a second call does nothing.

        >>> import asyncio
        >>> asyncio.run(AsyncClient("grpc://127.0.0.1:8001").close())
        """
        self._closed = True
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _reply(self, question: Question, options: Options) -> Reply:
        try:
            return Reply(question, await self._asked(question, options), None)
        except Florence2Error as error:
            return Reply(question, None, error)

    def _opened(self) -> AsyncTransport:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._transport is None:
            self._transport = open_async_transport(self._address)
        return self._transport

    async def _ask(self, image: Picture, task: str, text: Region | None, options: Options) -> Any:
        transport = self._opened()
        request = await asyncio.to_thread(build_request, image, task, text, **options)
        patience = Patience(request.timeout, self.retry_for)
        while True:
            try:
                outputs = await transport.infer(self.model, request.tensors, patience.remaining())
                return result_from_tensors(outputs, request.picture_size)
            except Unavailable as error:
                await asyncio.sleep(patience.wait_after(error))
