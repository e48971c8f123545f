"""One request in the engine: its input, and the state of its decoding. Pure Python; owned by the scheduler.

waiting --admit--> live --retire--> done
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from florence2.contract import GenerationOptions
from florence2.engine.beam import Candidate, Generation, Search
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
    moves: list[tuple[int, int]] = field(default_factory=list)  # of the next step, as in `backend.Span`
    kept: int = 0  # of the next step too
    outcome: Generation | Florence2Error | None = field(default=None)
    _shared: list[list[int]] = field(default_factory=list)  # leading tokens that each two hypotheses have in common

    @property
    def done(self) -> bool:
        return self.outcome is not None

    @property
    def encoder_length(self) -> int:
        """Return the positions that the image and the prompt take in the slot."""
        return len(self.request.image_features) + len(self.request.prompt_ids)

    def finish(self, outcome: Generation | Florence2Error) -> None:
        """Set the outcome."""
        assert self.outcome is None, "a request has one outcome"
        self.outcome = outcome

    def advance(self, candidates: list[Candidate]) -> None:
        """Take a step's candidates: finish, or note the moves of the next step.

        Each row continues what its parent decoded. Beams share long prefixes, whose keys and values need no move.
        """
        length = self.search.length
        parents = self.search.advance(candidates)
        if parents is None:
            return self.finish(self.search.result())
        shared = self._shared or [[1] * len(parents)] * len(parents)  # the start token
        moves = [(parent, beam) for beam, parent in enumerate(parents) if parent != beam]
        self.moves = [(self.rows[parent], self.rows[beam]) for parent, beam in moves]
        self.kept = min([shared[parent][beam] for parent, beam in moves], default=0)
        if len(parents) > 1:
            self._shared = [[length if one == other else shared[one][other] for other in parents] for one in parents]
