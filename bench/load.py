"""Send requests to a running server as a Poisson process, whether responses come or not (an open loop).

    python -m bench.load --mix caption:20                          captions of 20 tokens
    python -m bench.load --mix caption:20=0.7,od:200=0.3           70 % of those, 30 % detections of 200 tokens
    python -m bench.load --model florence2_decoder --mix ...       only the decoder, with random image features

MAX_NEW_TOKENS sets the lengths, so random weights serve as well. Prints latency by task, and throughput; `--json`
prints them as one object. Each request has a different image, so no cache answers.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import sys
import time
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc.aio as triton
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from florence2.tasks import task_from_name

ENSEMBLE = "florence2_ensemble"


class Kind(NamedTuple):
    """One task of a mix."""

    name: str
    tokens: int
    share: float


def parse_mix(text: str) -> list[Kind]:
    """Read `caption:20=0.7,od:200=0.3`, in which shares are optional."""
    kinds = []
    for part in text.split(","):
        what, _, share = part.partition("=")
        name, _, tokens = what.partition(":")
        kinds.append(Kind(name, int(tokens), float(share or 1)))
    return kinds


class Sender:
    """Send requests to one model of a server, over gRPC."""

    def __init__(self, url: str, model: str = ENSEMBLE, beams: int = 3, side: int = 320) -> None:
        self.url, self.model, self.beams, self.side = url.removeprefix("grpc://"), model, beams, side

    async def __aenter__(self) -> Sender:
        self._client = triton.InferenceServerClient(self.url)
        self._features: list[int] = []
        if self.model != ENSEMBLE:
            config = (await self._client.get_model_config(self.model)).config
            self._features = next(list(tensor.dims) for tensor in config.input if tensor.name == "IMAGE_FEATURES")
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._client.close()

    async def send(self, task: str, tokens: int) -> str:
        """Send one request and return its finish reason, or the status of its error."""
        tensors = self._tensors(task) | {
            "MAX_NEW_TOKENS": np.array([tokens], np.int32),
            "NUM_BEAMS": np.array([self.beams], np.int32),
        }
        inputs = [
            triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)).set_data_from_numpy(value)
            for name, value in tensors.items()
        ]
        try:
            response = await self._client.infer(self.model, inputs)
        except InferenceServerException as error:
            return str(error.status()).removeprefix("StatusCode.")
        return str(response.as_numpy("FINISH_REASON")[0].decode())

    def _tensors(self, task: str) -> dict[str, np.ndarray[Any, Any]]:
        if self._features:
            features = np.random.default_rng().standard_normal(self._features, np.float32)
            return {"IMAGE_FEATURES": features, "PROMPT_IDS": np.array([0, 9, 10, 11, 2], np.int32)}
        image = io.BytesIO()
        Image.new("RGB", (self.side, self.side), tuple(random.randbytes(3))).save(image, "PNG")
        known = task_from_name(task)
        return {
            "IMAGE": np.array([image.getvalue()], np.object_),
            "TASK": np.array([known.token if known else task], np.object_),
        }


async def run(sender: Sender, mix: list[Kind], rate: float, seconds: float) -> dict[str, Any]:
    """Send for `seconds` and wait for all responses. Latency counts from when a request was due."""
    chance = random.Random(0)
    latencies: dict[str, list[float]] = defaultdict(list)
    outcomes: dict[str, int] = defaultdict(int)
    tokens = 0

    async def one(kind: Kind, due: float) -> None:
        nonlocal tokens
        outcome = await sender.send(kind.name, kind.tokens)
        outcomes[outcome] += 1
        if outcome in ("stop", "length"):
            latencies[f"{kind.name}:{kind.tokens}"].append(time.monotonic() - due)
            tokens += kind.tokens

    start = due = time.monotonic()
    pending = []
    while due - start < seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        pending.append(asyncio.create_task(one(chance.choices(mix, [kind.share for kind in mix])[0], due)))
        due += chance.expovariate(rate)
    await asyncio.gather(*pending)
    took = time.monotonic() - start
    return {
        "rate": rate,
        "answered_per_second": sum(map(len, latencies.values())) / took,
        "tokens_per_second_at_most": tokens / took,
        "outcomes": dict(outcomes),
        "latency": {name: _percentiles(values) for name, values in sorted(latencies.items())},
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {"count": len(values), "p50": float(p50), "p90": float(p90), "p99": float(p99)}


def show(report: dict[str, Any]) -> None:
    print(f"{report['answered_per_second']:.2f} responses/s of {report['rate']:g} sent, {report['outcomes']}")
    print(f"{'task:tokens':24} {'count':>6} {'p50 s':>8} {'p90 s':>8} {'p99 s':>8}")
    for name, latency in report["latency"].items():
        cells = " ".join(f"{latency[p]:8.3f}" for p in ("p50", "p90", "p99"))
        print(f"{name:24} {latency['count']:6d} {cells}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--model", default=ENSEMBLE, help="the ensemble or a decoder (default: %(default)s)")
    parser.add_argument("--mix", type=parse_mix, default="caption:20", metavar="TASK:TOKENS[=SHARE],…")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to send (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    async def measure() -> dict[str, Any]:
        async with Sender(options.url, options.model, options.beams) as sender:
            await sender.send(options.mix[0].name, 1)  # the first request is slower
            return await run(sender, options.mix, options.rate, options.seconds)

    report = asyncio.run(measure())
    print(json.dumps(report)) if options.json else show(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
