"""Client: a picture and a task in, a typed Result out. The library's front door."""

from __future__ import annotations

import math
from types import TracebackType

from florence2.errors import InvalidOption
from florence2_client.pictures import Picture, encoded_picture
from florence2_client.request import request_tensors
from florence2_client.result import Result, result_from_tensors
from florence2_client.transport import DEFAULT_URL, Transport, open_transport

DEFAULT_MODEL = "florence2_ensemble"
LONGEST_TIMEOUT = 24 * 60 * 60  # seconds


class Client:
    """Asks a Florence-2 server. Connects at the first request, keeps the connection, and serves many threads.

    `url` is `grpc://host:port`, `http://host:port`, their TLS forms `grpcs://` and `https://`, or `host:port` for gRPC.
    `transport` takes the place of the network, in tests.
    """

    def __init__(
        self, url: str = DEFAULT_URL, model: str = DEFAULT_MODEL, *, transport: Transport | None = None
    ) -> None:
        self.model = model
        self._transport = transport or open_transport(url)
        self._closed = False

    def run(
        self,
        image: Picture,
        task: str,
        text: str | None = None,
        *,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        no_repeat_ngram_size: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Asks one task about one picture and waits for the answer, at most `timeout` seconds.

        `image` is a path, encoded bytes, a PIL image or a uint8 array. `task` is a name (`od`), a token (`<OD>`), or
        any prompt of a fine-tune. `text` is the phrase, caption or region (`x1,y1,x2,y2` in pixels) of tasks that take
        one. Options left out are the checkpoint's. Raises the errors of `florence2.errors`.
        """
        if self._closed:
            raise RuntimeError("the client is closed")
        if timeout is not None and not (math.isfinite(timeout) and 0 < timeout <= LONGEST_TIMEOUT):
            raise InvalidOption(f"timeout must be above 0 and at most {LONGEST_TIMEOUT} seconds, not {timeout}")
        tensors = request_tensors(
            encoded_picture(image),
            task,
            text,
            {
                "max_new_tokens": max_new_tokens,
                "num_beams": num_beams,
                "no_repeat_ngram_size": no_repeat_ngram_size,
                "length_penalty": length_penalty,
                "early_stopping": early_stopping,
            },
        )
        return result_from_tensors(self._transport.infer(self.model, tensors, timeout))

    def close(self) -> None:
        """Closes the connections; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
