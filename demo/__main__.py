"""Run `make demo`: export the bundled checkpoint, serve it, run all fifteen tasks on one image and draw the answers.

`python -m demo` writes to build/demo and leaves nothing running. `--target gpu` does the same on a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from florence2.errors import Florence2Error
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2.tasks import TASKS
from florence2_client import Client, Result
from florence2_export.pipeline import export_checkpoint

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "demo" / "checkpoint"
IMAGE = ROOT / "demo" / "images" / "scene.png"
INPUTS = IMAGE.with_suffix(".json")
OUTPUT = ROOT / "build" / "demo"
REPOSITORY = OUTPUT / "model_repository"
ANSWER_WIDTH = 72
SHEET = ("od", "dense_region_caption", "referring_expression_segmentation", "ocr_with_region")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Show all fifteen tasks on one image.")
    parser.add_argument("--target", choices=("cpu", "gpu"), default="cpu", help="hardware (default: %(default)s)")
    target = parser.parse_args().target
    try:
        run(target)
    except Florence2Error as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT; the server has already stopped
    print(f"\nThe images are in {OUTPUT.relative_to(ROOT)}. To serve this model: "
          f"florence2 serve --repository {REPOSITORY.relative_to(ROOT)}")  # fmt: skip
    return 0


def run(target: str) -> None:
    with step(1, f"Exporting the bundled checkpoint for a {target.upper()}"):
        export(target)
    with ExitStack() as stack:
        with step(2, "Starting Triton Inference Server"):
            server = stack.enter_context(EmbeddedServer(ServingOptions.on_free_ports(REPOSITORY), report=detail))
        with step(3, f"Running {len(TASKS)} tasks on {IMAGE.relative_to(ROOT)} over {server.grpc_url}"):
            results = run_all(server.grpc_url)
        with step(4, "Drawing the answers"):
            draw_all(results)
        with step(5, "Stopping the server"):
            stack.close()


@contextmanager
def step(number: int, title: str) -> Iterator[None]:
    print(f"[{number}/5] {title}", flush=True)
    started = time.monotonic()
    yield
    detail(f"done in {time.monotonic() - started:.1f} s")


def detail(line: str) -> None:
    print(f"      {line}", flush=True)


def export(target: str) -> None:
    """Export the checkpoint, which takes about twenty seconds, unless the last run's export is still up to date."""
    stamp = OUTPUT / "exported"
    sources = [CHECKPOINT, ROOT / "model_repository", ROOT / "export", ROOT / "florence2" / "config.py"]
    inputs = f"{target} {fingerprint(sources)}"
    if stamp.exists() and stamp.read_text() == inputs and REPOSITORY.exists():
        return detail("up to date since the last run")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if not export_checkpoint(str(CHECKPOINT), REPOSITORY, output=detail, device=target):
        raise Florence2Error("the exported models and the checkpoint give different answers")
    stamp.write_text(inputs)


def fingerprint(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def run_all(url: str) -> list[Result]:
    """Run every task and print a line for each with its time and answer."""
    inputs = json.loads(INPUTS.read_text(encoding="utf-8"))["tasks"]
    results = []
    detail(f"{'task':<35}{'input':<28}{'ms':>5}  answer")
    with Client(url) as client:
        for task in TASKS.values():
            text = inputs[task.token]["input"]
            started = time.monotonic()
            result = client.run(IMAGE, task.token, text, timeout=60)
            milliseconds = 1000 * (time.monotonic() - started)
            detail(f"{task.name:<35}{shorten(text or '', 26):<28}{milliseconds:>5.0f}  {shorten(result.text)}")
            results.append(result)
    return results


def shorten(text: str, width: int = ANSWER_WIDTH) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def draw_all(results: list[Result]) -> None:
    """Draw an image per task, and a sheet of four, which README shows."""
    drawn = {TASKS[result.task].name: result.draw(IMAGE) for result in results}
    for name, image in drawn.items():
        image.save(OUTPUT / f"{name}.png")
    side = drawn["od"].width
    sheet = Image.new("RGB", (2 * side, 2 * side))
    for place, name in enumerate(SHEET):
        sheet.paste(drawn[name], (place % 2 * side, place // 2 * side))
    sheet.resize((side, side)).save(OUTPUT / "answers.png")
    detail(f"{len(results)} images in {OUTPUT.relative_to(ROOT)}, and four of them in answers.png")


if __name__ == "__main__":
    sys.exit(main())
