"""The competitors of bench.compare: each starts in a `with` block and answers many threads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.checkpoints import export, exported
from bench.compare import openvino_port, servers
from bench.compare.loads import ICON_SIDE, SWEEP, Ask, Load
from bench.compare.record import fingerprint
from bench.compare.scripts import Compiled, OpenVino, Plain, in_a_process
from bench.static_batch.generate import Generator

SCRIPTED = ("main", "long", "quality")
SERVED = (*SCRIPTED, "growth", "icons")


@dataclass(frozen=True)
class Competitor:
    """A way to run the model. `cost` is the expected seconds of its start, of an answer, and of a token of it."""

    name: str
    start: Callable[[], AbstractContextManager[Ask]]
    parts: tuple[str, ...] = ()
    one_client: bool = False  # a script
    sweep: tuple[int, ...] = SWEEP
    cost: tuple[float, float, float] = (20, 1.2, 0.01)

    def takes(self, load: Load) -> bool:
        """Say whether a load suits it; a script has one client, unless the load is about one image."""
        clients = len(load.clients)
        if self.one_client:
            return clients == 1 or load.one_image
        return load.name != "growth" or clients in self.sweep

    def seconds(self, loads: list[Load]) -> float:
        """Return how long these loads are expected to take."""
        start, answer, token = self.cost
        return start + sum(load.requests * (answer + token * load.tokens) for load in loads)


def prepare(checkpoint: Path, folder: Path) -> None:
    """Make what the competitors serve, unless the same sources made it before. Base geometry takes some minutes."""
    exports = fingerprint("export") + fingerprint("model_repository")
    for precision, size in (("auto", 0), ("float32", 0), ("auto", ICON_SIDE)):
        with made_by(exports, exported(checkpoint, folder, precision, image_size=size)):
            export(checkpoint, folder, precision, image_size=size)
    converted = folder / f"{checkpoint.name}-openvino"
    with made_by(fingerprint("bench/compare/openvino_port.py"), converted):
        openvino_port.convert(checkpoint, converted)


@contextmanager
def made_by(sources: str, made: Path) -> Iterator[None]:
    """Remove what other sources made, and note the sources that make it now."""
    note = Path(f"{made}.sources")
    if made.exists() and not (note.exists() and note.read_text() == sources):
        shutil.rmtree(made)
    yield
    note.write_text(sources)


def line_up(checkpoint: Path, folder: Path) -> list[Competitor]:
    """Return the competitors in the tables' order; `prepare` makes what they serve.

    By default this server's language model has int8 weights and its encoder computes in bfloat16. The static batch and
    the compiled script use bfloat16, their fastest precision here, so that precision is not this server's advantage.
    """
    auto, exact = exported(checkpoint, folder, "auto"), exported(checkpoint, folder, "float32")
    small = exported(checkpoint, folder, "auto", image_size=ICON_SIDE)
    openvino = OpenVino(checkpoint, folder / f"{checkpoint.name}-openvino")
    float32, bfloat16 = Plain(checkpoint, "float32"), Plain(checkpoint, "bfloat16")
    reduced, compiled = Plain(checkpoint, "bfloat16", ICON_SIDE), Compiled(checkpoint, "bfloat16")
    return [
        script("transformers float32", float32, ("main", "quality"), (15, 4.2, 0.1)),
        script("transformers bfloat16", bfloat16, (*SCRIPTED, "icons", "stream"), (15, 2.2, 0.055)),
        script("transformers compiled, bfloat16", compiled, ("main",), (180, 2.4, 0.06)),
        script("OpenVINO port", openvino, (*SCRIPTED, "stream"), (20, 2.0, 0.05)),
        static_batch(checkpoint, "bfloat16"),
        Competitor("this server, float32", partial(servers.served, exact), ("main", "quality"), cost=(25, 2.8, 0.03)),
        Competitor("this server, default", partial(servers.served, auto), (*SERVED, "images")),
        Competitor("this server, streaming", partial(servers.streaming, auto), ("stream",), cost=(25, 1, 0)),
        Competitor("this server, for 64 x 64", partial(servers.served, small), ("icons",), cost=(20, 0.05, 0.003)),
        script("transformers bfloat16, for 64 x 64", reduced, ("icons",), (15, 0.2, 0.05)),
        Competitor("1 server on 1 core", partial(servers.replicas, auto, [[0]]), ("replicas",), cost=(20, 2.9, 0)),
        Competitor(
            "2 servers on 1 core each", partial(servers.replicas, auto, [[0], [1]]), ("replicas",), cost=(40, 1.5, 0)
        ),
        Competitor("1 server on 2 cores", partial(servers.replicas, auto, [[0, 1]]), ("replicas",), cost=(20, 1.5, 0)),
    ]


def script(
    name: str, load: Callable[[], Generator], parts: tuple[str, ...], cost: tuple[float, float, float]
) -> Competitor:
    return Competitor(name, partial(in_a_process, load), parts, one_client=True, cost=cost)


def static_batch(checkpoint: Path, precision: str) -> Competitor:
    start = partial(servers.batched, checkpoint, precision)
    return Competitor(f"static batch, {precision}", start, SERVED, sweep=(32,), cost=(20, 2.1, 0.033))
