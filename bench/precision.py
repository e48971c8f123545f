"""Measure what a precision of the language model costs: answers that change, and quality, on drawn scenes.

`python -m bench.precision --scenes 300` runs the bundled checkpoint through the engine on all fifteen tasks, with the
same float32 image features for every precision, and prints a Markdown table. With `--target gpu` it takes the padded
steps of a GPU, on the CPU.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2.engine.weights import build_language_model, create_backend
from florence2_export.checkpoint import Checkpoint, read_checkpoint
from florence2_export.language import language_tensors
from tools.toy_model import architecture, scenes
from tools.toy_model.evaluate import CHECKPOINT, DRAWN_SIZE, MEASURES, Scores, in_groups, table

PRECISIONS = {"cpu": ("float32", "bfloat16", "int8", "int4"), "gpu": ("float32", "float16", "bfloat16", "int4")}
SPECIAL = re.compile("<s>|</s>|<pad>")
GROUP = 20  # scenes at a time


def engine_of(checkpoint: Checkpoint, precision: str, target: str) -> Engine:
    config = checkpoint.config
    model = build_language_model(language_tensors(checkpoint.weights, precision, target), config, precision)
    backend = create_backend(model, config) if target == "cpu" else CudaBackend(model, config, 24)
    return Engine(backend, config, max_waiting=GROUP * len(MEASURES))


def requests(
    path: Path, checkpoint: Checkpoint, seeds: Sequence[int], beams: int
) -> Iterator[tuple[str, str, Request]]:
    """Yield task, expected answer and request for every task of every scene."""
    model, processor = architecture.load(path)
    model.eval()
    options = checkpoint.config.generation_options(num_beams=beams, max_new_tokens=150)
    for seed in seeds:
        scene = scenes.make_scene(seed)
        examples = scenes.make_examples(scene, seed)
        tasks = [task for task in MEASURES if task in examples]
        inputs = processor(
            images=[scene.draw(DRAWN_SIZE)] * len(tasks),
            text=[examples[task].processor_text for task in tasks],
            return_tensors="pt",
            padding=True,
        )
        with torch.inference_mode():
            features = model.get_image_features(inputs.pixel_values[:1]).pooler_output[0].numpy()
        for task, ids, mask in zip(tasks, inputs.input_ids, inputs.attention_mask, strict=True):
            prompt = ids[mask.bool() & (ids != model.config.image_token_id)].tolist()
            yield task, examples[task].target, Request(features.astype(np.float32), prompt, options)


def compare(path: Path, scene_count: int, beams: int, precisions: Sequence[str], target: str) -> Iterator[str]:
    checkpoint = read_checkpoint(str(path))
    engines = {precision: engine_of(checkpoint, precision, target) for precision in precisions}
    scores: dict[str, dict[str, Scores]] = {precision: defaultdict(Scores) for precision in precisions}
    changed, asked = dict.fromkeys(precisions, 0), 0
    for seeds in in_groups(list(range(scene_count)), GROUP):
        cases = list(requests(path, checkpoint, seeds, beams))
        asked += len(cases)
        reference: list[str] = []
        for precision, engine in engines.items():
            generations = engine.generate([request for _, _, request in cases])
            decode = checkpoint.tokenizer.decode
            texts = [SPECIAL.sub("", decode(list(answer.tokens), skip_special_tokens=False)) for answer in generations]
            reference = reference or texts
            changed[precision] += sum(text != first for text, first in zip(texts, reference, strict=True))
            for (task, target, _), text in zip(cases, texts, strict=True):
                scores[precision][task].answers += 1
                MEASURES[task][0](scores[precision][task], text, target)
    yield table(scores)
    for precision in precisions[1:]:
        yield f"\n{precision}: {changed[precision]} of {asked} answers differ from {precisions[0]}'s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--target", choices=PRECISIONS, default="cpu")
    parser.add_argument("--precisions", nargs="+", help="the first is the reference; default: all of the target")
    options = parser.parse_args()
    precisions = options.precisions or PRECISIONS[options.target]
    for line in compare(options.checkpoint, options.scenes, options.beams, precisions, options.target):
        print(line)


if __name__ == "__main__":
    main()
