"""Check and measure the CUDA backend on the GPU of this machine, within a time limit.

    python -m bench.gpu                             all parts
    python -m bench.gpu --parts steps,throughput
    python -m bench.gpu --device cpu --small        the same code on a CPU, with tiny sizes: a test of the program

Each part is a process of its own, so that a failure, or a broken CUDA context, costs only that part. Numbers go to
OUT/PART.json as they come ($OUT, or gpu_out), what is printed to OUT/PART.log, and the table for docs/gpu.md, made from
all numbers there, to OUT/table.md.

    exactness    the answers are those of transformers on this device; graphs against eager steps; other precisions and
                 their quality; captures next to another thread
    steps        time of a step by requests x beams, captures, prefill by batch, memory
    pieces       where a step's time goes: pieces, kernels, single operators
    throughput   64 captions and 64 detections, against transformers' generate in static batches; single requests
    encoder      the vision encoder in torch, eager and as a graph, and in ONNX Runtime
    together     steps and images per second while both run, as two processes and as two threads
    served       exports in the embedded server: answers against transformers, requests per second, Roboflow's protocol
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu import table

PARTS = {
    "exactness": 125,
    "steps": 115,
    "pieces": 60,
    "throughput": 130,
    "encoder": 180,
    "together": 90,
    "served": 240,
}  # seconds after which each is ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="separated by commas")
    parser.add_argument("--limit", type=float, default=900, help="seconds for all parts")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a CPU")
    options = parser.parse_args()
    out = Path(os.environ.get("OUT", "gpu_out"))
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OUT": str(out), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    end, failed = time.monotonic() + options.limit, False
    for part in options.parts.split(","):
        seconds = min(PARTS[part], end - time.monotonic())
        if seconds < 20:
            print(f"=== {part}: no time left", flush=True)
            continue
        command = [sys.executable, "-m", f"bench.gpu.{part}", "--device", options.device]
        command += ["--seconds", str(seconds * 0.75)]
        command += ["--small"] if options.small else []
        with (out / f"{part}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                code: int | str = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = "out of time"
        text = (out / f"{part}.log").read_text(encoding="utf-8", errors="replace")
        failed |= code != 0 or "_failed:" in text
        print(f"=== {part}: {code}\n{text}", flush=True)
    text = table.markdown(table.read(out))
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
