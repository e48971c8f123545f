"""The whole served path: an export for this device in the embedded server, and answers over gRPC.

Answers of the bundled checkpoint in float32 are compared with transformers' on a CPU. Speed is that of base geometry
with random weights: captions, detections, and Roboflow's protocol, which is one client, greedy, with 128 tokens.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.checkpoints import BUNDLED, base_checkpoint, export
from bench.compare.loads import BEAMS, CAPTION, DETECTION, Kind, Load, image, run
from bench.compare.quality import LONGEST, examples, measure_quality
from bench.compare.servers import asking
from bench.gpu.harness import Report, arguments
from bench.harness import embedded_server
from bench.static_batch.generate import Generator

ENSEMBLE = "florence2_ensemble"
SCENES, CLIENTS = 3, 24
ROBOFLOW = Kind("<CAPTION>", 128)
LOADS = ((CAPTION, BEAMS, 1, 8), (CAPTION, BEAMS, 8, 64), (CAPTION, BEAMS, 64, 256), (DETECTION, BEAMS, 64, 128),
         (ROBOFLOW, 1, 1, 8))  # kind, beams, clients, requests  # fmt: skip
SMALL_LOADS = ((Kind("<CAPTION>", 6), BEAMS, 4, 8), (Kind("<CAPTION>", 8), 1, 1, 2))


def answers(report: Report, folder: Path, target: str) -> None:
    """Compare every task on drawn scenes, letter for letter, which includes location tokens."""
    count = 1 if report.options.small else SCENES
    reference = Generator(BUNDLED, torch.float32)
    expected = [reference.answer([one.image], [one.prompt], [LONGEST], BEAMS)[0].text for one in examples(count)]
    with (
        embedded_server(export(BUNDLED, folder, "float32", target)) as server,
        asking(server.grpc_url, ENSEMBLE, [1]) as ask,
    ):
        served = measure_quality(ask, count, CLIENTS)
    different = [pair for pair in zip(served.answers, expected, strict=True) if pair[0] != pair[1]]
    report("answers", {"of": len(expected), "different": different, "quality": served.score})


def speed(report: Report, folder: Path, target: str) -> None:
    """Measure answers per second and the latency of each load, on images that the server has not seen."""
    small = report.options.small
    checkpoint = BUNDLED if small else base_checkpoint(folder / "base")
    repository = export(checkpoint, folder, "float16" if target == "gpu" else "auto", target)
    started, seed = time.monotonic(), 1
    with embedded_server(repository) as server:
        report("ready_seconds", round(time.monotonic() - started, 1))
        for kind, beams, clients, requests in SMALL_LOADS if small else LOADS:
            if report.late:
                return
            exactly = {"MIN_NEW_TOKENS": kind.tokens} if beams == 1 else {}  # as Roboflow does
            with asking(server.grpc_url, ENSEMBLE, [1], beams, **exactly) as ask:
                ask(image(0), kind.task, kind.tokens)  # the first request is slower
                measured = run(ask, Load(kind.task, (kind,) * clients, requests), seed)
            seed += requests
            median, late = np.percentile(measured.latencies[str(kind)], (50, 99))
            cells = {"per_second": measured.per_second, "median_s": median, "99_percent_s": late}
            cells["tokens"] = measured.tokens / requests
            report(
                f"`{kind.task}`, {kind.tokens} tokens, {beams} beams, {clients} clients",
                {name: round(cell, 3) for name, cell in cells.items()},
            )


def main() -> None:
    options = arguments(__doc__)
    report = Report(options, "served")
    with tempfile.TemporaryDirectory() as folder:
        for part in (answers, speed):
            with report.part(part.__name__):
                part(report, Path(folder), "gpu" if options.device == "cuda" else "cpu")


if __name__ == "__main__":
    main()
