"""One request in the engine: its input, and the state of its decoding. Pure Python; owned by the scheduler.

waiting --admit--> live --retire--> done
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from florence2.contract import GenerationOptions
from florence2.engine.beam import Generation, Search
from florence2.errors import Florence2Error


@dataclass(frozen=True)
class Request:
    """The decoder's input for one answer; checked by `Engine.check`."""

    image_features: Any  # float32 [image tokens, d_model], numpy
    prompt_ids: list[int]  # `<s>` … `</s>`
    options: GenerationOptions


@dataclass(eq=False)
class Sequence:
    """A request on its way through the engine. It is done when `outcome` is set, which happens once."""

    request: Request
    search: Search
    rows: range = range(0)  # of self-attention keys and values; empty while waiting
    slot: int = -1  # of cross-attention keys and values; -1 while waiting
    prefilled: bool = False  # the slot is ready, so the request can be decoded
    outcome: Generation | Florence2Error | None = field(default=None)

    @property
    def done(self) -> bool:
        return self.outcome is not None

    def finish(self, outcome: Generation | Florence2Error) -> None:
        """Set the outcome."""
        assert self.outcome is None, "a request has one outcome"
        self.outcome = outcome
