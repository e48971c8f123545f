"""Compare answers on this device with transformers' on this device, graphs with eager steps, and precisions."""

from __future__ import annotations

import argparse
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from bench.checkpoints import BUNDLED
from bench.compare.quality import LONGEST
from bench.decode import random_weights
from bench.gpu.harness import (
    EagerBackend,
    Report,
    arguments,
    engine_of,
    geometry,
    graphs_of,
    random_request,
    reference_answers,
)
from bench.precision import SPECIAL
from florence2.config import ModelConfig
from florence2.engine.beam import Generation
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.sequence import Request
from florence2_export.checkpoint import read_checkpoint
from tools.toy_model import scenes
from tools.toy_model.evaluate import MEASURES, Scores


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


class Case(NamedTuple):
    """A task on a drawn scene, with its right answer."""

    task: str
    target: str
    request: Request


@torch.inference_mode()
def cases(model: Florence2ForConditionalGeneration, config: ModelConfig, seeds: Sequence[int]) -> list[Case]:
    """Return every task on drawn scenes, with the features that this device computes."""
    processor = AutoProcessor.from_pretrained(BUNDLED)
    found = []
    for seed in seeds:
        scene = scenes.make_scene(seed)
        image = scene.draw(config.image.width)
        pixels = processor.image_processor(image, return_tensors="pt").pixel_values.to(model.device)
        features = model.get_image_features(pixels).pooler_output[0].float().cpu().numpy()
        for task, example in scenes.make_examples(scene, seed).items():
            ids = processor(images=[image], text=[example.processor_text], return_tensors="pt").input_ids[0]
            prompt = ids[ids != model.config.image_token_id].tolist()
            options = config.generation_options(max_new_tokens=min(LONGEST, config.max_new_tokens))
            found.append(Case(task, example.target, Request(features, prompt, options)))
    return found


def against_transformers(report: Report, options: argparse.Namespace) -> None:
    """Compare token for token in float32, all tasks, greedy and with beams, with requests that join late."""
    checkpoint = read_checkpoint(str(BUNDLED))
    config, weights = checkpoint.config, checkpoint.weights
    model = Florence2ForConditionalGeneration.from_pretrained(BUNDLED, dtype=torch.float32)
    asked = cases(model.to(options.device).eval(), config, range(1 if options.small else 2))
    for beams in (1, 3, 5):
        requests = [replace(case.request, options=replace(case.request.options, num_beams=beams)) for case in asked]
        ours = in_waves(engine_of(weights, config, options, precision="float32"), requests)
        theirs = [reference_answers(model, config, [request])[0] for request in requests]
        unequal = [case.task for case, one, other in zip(asked, ours, theirs, strict=True) if list(one.tokens) != other]
        equal = {"equal": len(asked) - len(unequal), "of": len(asked), "different": unequal}
        report(f"equal_to_transformers_{beams}_beams", equal)


def precisions(report: Report, options: argparse.Namespace) -> None:
    """Compare the half precisions with float32 on this device: answers, log-probs, and quality on drawn scenes."""
    checkpoint = read_checkpoint(str(BUNDLED))
    model = Florence2ForConditionalGeneration.from_pretrained(BUNDLED, dtype=torch.float32)
    asked = cases(model.to(options.device).eval(), checkpoint.config, range(100, 101 if options.small else 112))
    exact: list[Generation] = []
    metrics: dict[str, float] = {}
    for precision in ("float32", "float16", "bfloat16"):
        engine = engine_of(checkpoint.weights, checkpoint.config, options, precision=precision)
        found = engine.generate([case.request for case in asked])
        exact = exact or found
        equal = [(one, other) for one, other in zip(found, exact, strict=True) if one.tokens == other.tokens]
        errors = [abs(a - b) for one, other in equal for a, b in zip(one.log_probs, other.log_probs, strict=True)]
        decode = checkpoint.tokenizer.decode
        measured = quality(asked, [decode(list(one.tokens), skip_special_tokens=False) for one in found])
        metrics = metrics or measured
        report(f"quality_{precision}", {
            "same_answers": len(equal), "of": len(found), "mean_log_prob_error": float(np.mean(errors)),
            "mean_metric": float(np.mean(list(measured.values()))),
            "largest_change": max(abs(measured[name] - metrics[name]) for name in metrics),
        })  # fmt: skip


def quality(asked: Sequence[Case], texts: Sequence[str]) -> dict[str, float]:
    """Return each metric of each task, as tools.toy_model.evaluate measures it."""
    scores: dict[str, Scores] = defaultdict(Scores)
    for case, text in zip(asked, texts, strict=True):
        scores[case.task].answers += 1
        MEASURES[case.task][0](scores[case.task], SPECIAL.sub("", text), case.target)
    return {f"{task} {name}": value(scores[task]) for task in scores for name, value in MEASURES[task][1]}


def captures_next_to_a_thread(report: Report, options: argparse.Namespace) -> None:
    """Capture while another thread multiplies and allocates, which breaks captures in CUDA's default mode."""
    config, stop, errors = geometry(options), threading.Event(), list[str]()

    def disturb() -> None:
        try:
            while not stop.is_set():
                block = torch.randn(256, 256, device=options.device)
                (block @ block).sum().item()
                torch.empty(2**21 + int(torch.randint(2**20, (1,))), device=options.device)
        except Exception as error:
            errors.append(str(error).splitlines()[0])

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        engine = engine_of(random_weights(config), config, options)
        engine.generate([random_request(config, seed, num_beams=3, max_new_tokens=8) for seed in range(3)])
    finally:
        stop.set()
        thread.join()
    assert isinstance(engine.backend, CudaBackend)
    report("captures_next_to_a_thread", {"graphs": graphs_of(engine.backend), "errors_of_the_thread": errors})


def graphs_against_eager(report: Report, options: argparse.Namespace) -> None:
    """Compare candidates bit for bit over many changes of shape, and answers in a batch with those of single ones."""
    config, logged = geometry(options), dict[str, list[Any]]()
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

        def record(given, step=step, log=logged[name]):  # type: ignore[no-untyped-def]
            found = step(given)
            log.append([[part.tolist() for part in candidates] for candidates in found])
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
    # The last part can leave a context in which nothing works.
    for part in (graphs_against_eager, against_transformers, precisions, captures_next_to_a_thread):
        with report.part(part.__name__):
            part(report, options)


if __name__ == "__main__":
    main()
