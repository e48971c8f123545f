"""Are the answers on this device those of transformers on this device, and what do graphs and precisions change?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from bench.decode import random_weights
from bench.gpu.harness import EagerBackend, Report, arguments, engine_of, geometry, random_request, reference_answers
from florence2.config import ModelConfig
from florence2.engine.beam import Candidate, Generation
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2_export.checkpoint import read_checkpoint
from tools.toy_model import scenes

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


def in_waves(engine: Engine, requests: Sequence[Request]) -> list[Generation]:
    """Return the answers in order; three requests at first, then two more join at every third step."""
    sequences, waiting, steps = [engine.add(request) for request in requests[:3]], list(requests[3:]), 0
    while waiting or not engine.scheduler.idle:
        engine.step()
        steps += 1
        if steps % 3 == 0:
            sequences += [engine.add(request) for request in waiting[:2]]
            del waiting[:2]
    return [sequence.outcome for sequence in sequences if isinstance(sequence.outcome, Generation)]


@torch.inference_mode()
def cases(
    model: Florence2ForConditionalGeneration, config: ModelConfig, seeds: Sequence[int]
) -> list[tuple[str, Request]]:
    """Return every task on drawn scenes, with the features that this device computes."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    found = []
    for seed in seeds:
        scene = scenes.make_scene(seed)
        image = scene.draw(config.image.width)
        pixels = processor.image_processor(image, return_tensors="pt").pixel_values.to(model.device)
        features = model.get_image_features(pixels).pooler_output[0].float().cpu().numpy()
        for task, example in scenes.make_examples(scene, seed).items():
            ids = processor(images=[image], text=[example.processor_text], return_tensors="pt").input_ids[0]
            prompt = ids[ids != model.config.image_token_id].tolist()
            found.append((task, Request(features, prompt, config.generation_options())))
    return found


def against_transformers(report: Report, options: argparse.Namespace) -> None:
    """Compare token for token in float32, greedy and with beams; then other precisions with float32."""
    checkpoint = read_checkpoint(str(CHECKPOINT))
    config, weights = checkpoint.config, checkpoint.weights
    model = Florence2ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    asked = cases(model.to(options.device).eval(), config, range(1 if options.small else 2))
    asked = asked[:4] if options.small else asked
    exact: list[Generation] = []
    for beams in (1, 3, 5):
        requests = [
            Request(request.image_features, request.prompt_ids, config.generation_options(num_beams=beams))
            for _, request in asked
        ]
        ours = in_waves(engine_of(weights, config, options, precision="float32"), requests)
        theirs = [reference_answers(model, config, [request])[0] for request in requests]
        unequal = [task for (task, _), one, other in zip(asked, ours, theirs, strict=True) if list(one.tokens) != other]
        report(f"equal_to_transformers_{beams}_beams", f"{len(asked) - len(unequal)} of {len(asked)}; not: {unequal}")
        exact = ours if beams == 3 else exact
    for precision in ("float16", "bfloat16") if options.device == "cuda" else ("bfloat16",):
        requests = [request for _, request in asked]
        found = engine_of(weights, config, options, precision=precision).generate(requests)
        same = sum(one.tokens == other.tokens for one, other in zip(found, exact, strict=True))
        report(f"{precision}_equal_to_float32", f"{same} of {len(asked)}")


def graphs_against_eager(report: Report, options: argparse.Namespace) -> None:
    """Compare candidates bit for bit over many changes of shape, and answers in a batch with those of single ones."""
    config, logged = geometry(options), dict[str, list[list[list[Candidate]]]]()
    weights, limit = random_weights(config), 24 if options.small else 80  # 80 is more than a bucket of 64
    requests = [
        random_request(config, seed, num_beams=beams, max_new_tokens=limit - seed)
        for seed, beams in enumerate((1, 3, 3, 1, 5, 3, 2, 3, 1, 3))
    ]
    answers = {}
    for name, backend in (("eager", EagerBackend), ("graph", CudaBackend)):
        engine = engine_of(weights, config, options, backend=backend)
        made, logged[name] = engine.backend, []
        assert isinstance(made, CudaBackend)
        step = made.step

        def record(searches, spans, step=step, log=logged[name]):  # type: ignore[no-untyped-def]
            found = step(searches, spans)
            log.append(found)
            return found

        made.step = record  # type: ignore[method-assign]
        answers[name] = [answer.tokens for answer in in_waves(engine, requests)]
    different = sum(one != other for one, other in zip(logged["eager"], logged["graph"], strict=False))
    report("graph_steps_that_differ_from_eager", f"{different} of {len(logged['eager'])}")
    report("graph_answers_equal_eager", answers["eager"] == answers["graph"])
    single = [engine_of(weights, config, options).generate([request])[0].tokens for request in requests]
    same = sum(one == other for one, other in zip(single, answers["graph"], strict=True))
    report("answers_that_do_not_depend_on_the_batch", f"{same} of {len(requests)}")


def main() -> None:
    options = arguments(__doc__)
    report = Report(options, "exactness")
    with report.part("graphs"):
        graphs_against_eager(report, options)
    with report.part("transformers"):
        against_transformers(report, options)


if __name__ == "__main__":
    main()
