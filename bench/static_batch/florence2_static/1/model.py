"""Run `generate` on the batches that Triton makes: all requests of a batch wait for its longest answer."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from generate import Generator  # a copy of bench/static_batch/generate.py


class TritonPythonModel:
    def initialize(self, args):
        checkpoint = Path(args["model_repository"]) / args["model_version"] / "checkpoint"
        precision = json.loads(args["model_config"])["parameters"]["precision"]["string_value"]
        self.generator = Generator(checkpoint, getattr(torch, precision))

    def execute(self, requests):
        """Answer a padded batch of all tasks for each number of beams, since `generate` takes one number."""
        batches = defaultdict(list)
        for number, request in enumerate(requests):
            batches[value(request, "NUM_BEAMS")].append((number, request))
        responses = [None] * len(requests)
        for beams, batch in batches.items():
            numbers, grouped = zip(*batch, strict=True)
            for number, response in zip(numbers, self.answer(grouped, beams), strict=True):
                responses[number] = response
        return responses

    def answer(self, requests, beams):
        try:
            answers = self.generator.answer(
                [value(request, "IMAGE") for request in requests],
                [value(request, "TASK").decode() for request in requests],
                [value(request, "MAX_NEW_TOKENS") for request in requests],
                beams,
            )
        except Exception as error:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in requests]
        return [respond(answer) for answer in answers]


def value(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()


def respond(answer):
    texts = {"RESULT": json.dumps(answer.result), "GENERATED_TEXT": answer.text}
    tensors = [pb_utils.Tensor(name, np.array([[text.encode()]], np.object_)) for name, text in texts.items()]
    tensors.append(pb_utils.Tensor("NUM_TOKENS", np.array([[answer.tokens]], np.int32)))
    return pb_utils.InferenceResponse(tensors)
