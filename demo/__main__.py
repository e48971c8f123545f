"""Run `make demo`: export the bundled checkpoint, serve it, run all fifteen tasks on one image and draw the answers.

`python -m demo` writes to build/demo, leaves nothing running, and ends with the commands to go on with. `--target gpu`
does the same on a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from florence2.errors import Florence2Error
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2.tasks import TASKS
from florence2_client import Client, Found, Result
from florence2_client.objects import Shape
from florence2_export.pipeline import export_checkpoint
from tools.toy_model.evaluate import MEASURES, Scores

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "demo" / "checkpoint"
IMAGE = ROOT / "demo" / "images" / "scene.png"
INPUTS = IMAGE.with_suffix(".json")
OUTPUT = ROOT / "build" / "demo"
REPOSITORY = OUTPUT / "model_repository"
WIDTH = 100  # of the output, in columns
INDENT = " " * 6
EXPECTED = """\
The last comparison is with transformers in float32, token by token, on random shapes and noise. A lower precision \
rounds, which changes some token in most of these answers. That is expected: step 3 shows how good the answers to a \
scene are, and docs/export.md has figures for 4,427 answers."""
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
    print(closing())
    return 0


def run(target: str) -> None:
    with step(1, f"Exporting the bundled checkpoint for a {target.upper()}"):
        export(target)
    with ExitStack() as stack:
        with step(2, "Starting Triton Inference Server"):
            server = stack.enter_context(EmbeddedServer(ServingOptions.on_free_ports(REPOSITORY), report=progress))
        with step(3, f"Running {len(TASKS)} tasks on {here(IMAGE)} over gRPC, with the inputs in {INPUTS.name}"):
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
    print(INDENT + line, flush=True)


def progress(line: str) -> None:
    """Print what the server reports, but for the models that begin to load."""
    if not line.endswith(": loading"):
        detail(line)


def here(path: Path) -> str:
    """Return a path as it is typed in the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def closing() -> str:
    """Return what was made, and two commands to paste next."""
    florence2 = here(Path(sys.executable).with_name("florence2"))
    return textwrap.dedent(f"""
        Look at {here(OUTPUT / "answers.png")}. Then serve the model until Ctrl-C:

            {florence2} serve --repository {here(REPOSITORY)}

        and send a request from a second terminal, in the same directory:

            {florence2} run {here(IMAGE)} --task od --draw {here(OUTPUT.parent / "found.png")}
        """)


def export(target: str) -> None:
    """Export the checkpoint, which takes about twenty seconds, unless the last run's export is still up to date."""
    stamp = OUTPUT / "exported"
    sources = [CHECKPOINT, ROOT / "model_repository", ROOT / "export", ROOT / "florence2" / "config.py"]
    inputs = f"{target} {fingerprint(sources)}"
    if stamp.exists() and stamp.read_text() == inputs and REPOSITORY.exists():
        return detail("up to date since the last run")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if not export_checkpoint(here(CHECKPOINT), Path(here(REPOSITORY)), output=detail, device=target):
        raise Florence2Error("the exported models and the checkpoint give different answers")
    stamp.write_text(inputs)
    print(textwrap.fill(EXPECTED, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT))


def fingerprint(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def run_all(url: str) -> list[Result]:
    """Run every task and print its time, how well its answer matches what was drawn, and the answer."""
    drawn = json.loads(INPUTS.read_text(encoding="utf-8"))["tasks"]
    results = []
    detail(f"{'task':<34}{'ms':>4}  match  answer, with x,y in pixels")
    with Client(url) as client:
        for task in TASKS.values():
            started = time.monotonic()
            result = client.run(IMAGE, task.token, drawn[task.token]["input"], timeout=60)
            milliseconds = 1000 * (time.monotonic() - started)
            for line in rows(result, milliseconds, drawn[task.token]["answer"]):
                detail(line)
            results.append(result)
    detail("match: the text is equal, or the overlap (IoU) of boxes and outlines with those that were drawn")
    return results


def rows(result: Result, milliseconds: float, drawn: str) -> list[str]:
    """Return the lines of the table for an answer, which has the text or its objects with their boxes."""
    scorer, measures = MEASURES[result.task]
    scorer(scores := Scores(answers=1), result.text, drawn)
    _, match = measures[-1]
    first = f"{TASKS[result.task].name:<34}{milliseconds:>4.0f}  {match(scores):>5.0%}  "
    answer = "; ".join(map(describe, result.objects)) or result.answer.text
    return textwrap.wrap(first + answer, WIDTH - len(INDENT), subsequent_indent=" " * len(first))


def describe(found: Found) -> str:
    """Return an object's label and the corners of its box."""
    outline = f" (outline of {len(found.polygons[0])} points)" if found.shape is Shape.POLYGON else ""
    return "{} {:.0f},{:.0f} {:.0f},{:.0f}".format(found.label, *found.box).strip() + outline


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
