"""Is a server alive? A real question through all its stages, since Triton's own health routes say 200 when one is dead.

Called by `florence2 health`, the probe of containers and supervisors.
"""

from __future__ import annotations

import io
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from florence2.errors import ConnectionFailed, DeadlineExceeded, Florence2Error
from florence2_client.client import DEFAULT_MODEL
from florence2_client.request import Tensors, build_request
from florence2_client.transport import Transport, open_transport, parse_url

NOT_HEALTHY = re.compile(r"Stub process '(?P<model>.+?)_\d+_\d+' is not healthy")
BUSY = "queue is full"  # the decoder's own words: it could not say so were it dead
# More than there are preprocessing processes, all at once: one of those may be dead and the others hide it.
PREPROCESS_PROBES = 4


@dataclass(frozen=True)
class Health:
    """`sentence` says what was found."""

    alive: bool
    sentence: str


def check_health(
    url: str, model: str = DEFAULT_MODEL, timeout: float = 30.0, *, transport: Transport | None = None
) -> Health:
    """Asks for one token about a tiny picture, in at most `timeout` seconds. A server too busy to take it is alive."""
    transport = transport or open_transport(parse_url(url))
    start = time.monotonic()
    try:
        _ask_all_stages(transport, model, start + timeout)
    except Florence2Error as error:
        return _diagnosis(error, timeout)
    finally:
        transport.close()
    return Health(True, f"alive: all stages answered in {time.monotonic() - start:.1f} s")


def _ask_all_stages(transport: Transport, model: str, deadline: float) -> None:
    def ask(asked_model: str) -> None:
        transport.infer(asked_model, _question(), max(0.001, deadline - time.monotonic()))

    preprocess = f"{model.removesuffix('_ensemble')}_preprocess"
    with ThreadPoolExecutor(PREPROCESS_PROBES) as pool:
        list(pool.map(ask, [preprocess] * PREPROCESS_PROBES))
    ask(model)


def _question() -> Tensors:
    """A new colour each time, or a response cache would answer for a dead encoder."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), tuple(os.urandom(3))).save(picture, "PNG")
    return build_request(picture.getvalue(), "caption", max_new_tokens=1, num_beams=1).tensors


def _diagnosis(error: Florence2Error, timeout: float) -> Health:
    sentence = str(error)
    if BUSY in sentence:
        return Health(True, f"alive, but busy: {sentence}")
    if isinstance(error, ConnectionFailed):
        return Health(False, sentence)
    if isinstance(error, DeadlineExceeded):
        return Health(False, f"no answer within {timeout:g} s: a stage hangs, or the server is overloaded")
    dead = NOT_HEALTHY.search(sentence)
    return Health(False, f"a process of {dead['model']} is dead or hangs" if dead else f"not working: {sentence}")
