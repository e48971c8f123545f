"""AsyncClient: Client for asyncio, with the same methods."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from florence2.answers import Answer, Boxes, BoxesAndPolygons, Polygons, Quads, TextAnswer
from florence2.errors import Florence2Error, Unavailable
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
from florence2_client.transports import DEFAULT_URL, AsyncTransport, Tls, open_async_transport, parse_url

if TYPE_CHECKING:
    from typing_extensions import Unpack

AnswerT = TypeVar("AnswerT", bound=Answer)
Awaited: TypeAlias = Coroutine[Any, Any, Result[AnswerT]]
AllAwaited: TypeAlias = Coroutine[Any, Any, Results[AnswerT]]


class AsyncClient(
    TaskMethods[
        Awaited[TextAnswer],
        Awaited[Boxes],
        Awaited[Quads],
        Awaited[Polygons],
        Awaited[BoxesAndPolygons],
        Awaited[Answer],
        AllAwaited[TextAnswer],
        AllAwaited[Boxes],
        AllAwaited[Polygons],
        AllAwaited[BoxesAndPolygons],
        AllAwaited[Answer],
    ]
):
    """`Client` for asyncio: the same arguments and methods, to be awaited in one event loop.

    Cancelling a task cancels its request. Images are read and encoded in threads.

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
        """Check the URL, headers and TLS files; raise InvalidRequest if they cannot be used."""
        require_retry_for(retry_for)
        self.model = model
        self.retry_for = retry_for
        self._address = parse_url(url, headers, tls)
        self._transport = transport
        self._model_side: int | None = None  # once the server has told it
        self._closed = False

    async def run_many(
        self, asked: Iterable[Asked], *, concurrency: int = 16, ordered: bool = True, **options: Unpack[Options]
    ) -> AsyncGenerator[Reply, None]:
        """Do what `Client.run_many` does, for `async for`.

        >>> import asyncio
        >>> async def main():
        ...     async with AsyncClient("grpc://127.0.0.1:8001") as client:
        ...         async for reply in client.run_many([("scene.png", "od"), ("scene.png", "ocr_with_region")]):
        ...             print(reply.unwrap().labels)
        >>> asyncio.run(main())
        ['star', 'triangle']
        ['HELLO', 'TRITON']
        """

        def start(question: Question) -> asyncio.Task[Reply]:
            return asyncio.create_task(self._reply(question, options))

        flight = InFlight(asked, start, concurrency, ordered)
        try:
            for job in flight:
                if job is None:
                    await asyncio.wait(flight.running, return_when=asyncio.FIRST_COMPLETED)
                else:
                    yield job.result()
        finally:
            for job in flight.jobs:
                job.cancel()
            await asyncio.gather(*flight.jobs, return_exceptions=True)

    async def stream(
        self, image: ImageLike, task: str, text: Region | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Result[Answer], None]:
        """Do what `Client.stream` does, for `async for`.

        >>> import asyncio
        >>> async def main():
        ...     async with AsyncClient("grpc://127.0.0.1:8001") as client:
        ...         results = [result async for result in client.stream("scene.png", "ocr")]
        ...         print(results[-1].final, results[-1].answer.text)
        >>> asyncio.run(main())
        True HELLO TRITON
        """
        transport = self._opened()
        exchange = await self._exchange(image, task, text, options, stream=True)
        while True:
            try:
                async with contextlib.aclosing(transport.stream(*exchange.attempt())) as responses:
                    async for outputs in responses:
                        yield exchange.read(outputs)
                        if exchange.finished:
                            return
                raise exchange.incomplete()
            except Florence2Error as error:
                await asyncio.sleep(exchange.wait_after(error))

    async def close(self) -> None:
        """Close the connections; a second call does nothing. Requests in progress end with Cancelled.

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
            return Reply(question, await self._answer(question, options), None)
        except Florence2Error as error:
            return Reply(question, None, error)

    def _opened(self) -> AsyncTransport:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._transport is None:
            self._transport = open_async_transport(self._address)
        return self._transport

    async def _exchange(
        self, image: ImageLike, task: str, text: Region | None, options: Options, *, stream: bool = False
    ) -> Exchange:
        request = await asyncio.to_thread(build_request, image, task, text, **options)
        return Exchange(self.model, request, self.retry_for, stream=stream)

    async def _infer(self, image: ImageLike, task: str, text: Region | None, options: Options) -> Any:
        transport = self._opened()
        if options.get("tiles") is not None and (tiled := await self._tiled(image, task, text, options)):
            replies = self.run_many(tiled.questions(), concurrency=TILES_IN_FLIGHT, ordered=False)
            async with contextlib.aclosing(replies):
                results = {reply.question.key: reply.unwrap() async for reply in replies}
            return await asyncio.to_thread(tiled.merged, results)
        exchange = await self._exchange(image, task, text, {**options, "tiles": None})
        while True:
            try:
                return exchange.read(await transport.infer(*exchange.attempt()))
            except Florence2Error as error:
                await asyncio.sleep(exchange.wait_after(error))

    async def _tiled(self, image: ImageLike, task: str, text: Region | None, options: Options) -> Tiled | None:
        side = MODEL_SIDE
        if require_tiles(image, task, options)[0] == "auto":
            retry = Retry(options.get("timeout"), self.retry_for)
            while self._model_side is None:
                try:
                    self._model_side = image_side(await self._description(retry.remaining())) or MODEL_SIDE
                except Unavailable as error:
                    await asyncio.sleep(retry.wait_after(error))
                except Florence2Error:  # a proxy may hide configurations
                    self._model_side = MODEL_SIDE
            side = self._model_side
        return await asyncio.to_thread(Tiled.plan, image, task, text, options, side)

    async def _description(self, seconds: float | None = None) -> Description:
        """Return what the server shows of its model; nothing if the transport is the user's own and cannot tell."""
        describe = getattr(self._opened(), "describe", None)
        return await describe(self.model, min(DESCRIBE_SECONDS, seconds or DESCRIBE_SECONDS)) if describe else {}

    async def _infer_all(self, image: ImageLike, prompts: Sequence[Prompted], options: Options) -> Results[Any]:
        try:
            encoded = await asyncio.to_thread(encode_image, image, options.get("max_side"))
            questions = questions_about(encoded, prompts, options)
        except Florence2Error as error:
            return Results(failure(task, text, error) for task, text in prompts)
        return Results([reply.as_result() async for reply in self.run_many(questions)])

    async def _infer_crops(
        self, image: ImageLike, boxes: Iterable[Region], task: str, options: Options
    ) -> Results[Any]:
        boxes = list(boxes)
        try:
            crops = await asyncio.to_thread(Crops, image, boxes, task, options)
        except Florence2Error as error:
            return Results(failure(task, None, error) for _ in boxes)
        return crops.results([reply async for reply in self.run_many(crops.questions(), concurrency=CROPS_IN_FLIGHT)])
