"""Decoder: image features and prompt tokens -> generated tokens, by the in-flight batching engine.

`execute` hands each request to the engine and returns None, so Triton delivers the next ones while these are decoded;
the engine's sender thread answers them.
"""

import numpy as np

from florence2 import triton_io
from florence2.engine.beam import Generation
from florence2.engine.engine import Engine
from florence2.engine.metrics import METRICS, OTHER_TASK, task_label
from florence2.engine.sequence import Request
from florence2.engine.worker import Job, Worker


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton_io.Arguments(args)
        engine = Engine.load(
            arguments.directory,
            device=arguments.device,
            rows=arguments.integer("rows"),
            kv_cache_bytes=arguments.integer("kv_cache_mib") * 2**20,
            prefill_seconds=arguments.integer("prefill_ms") / 1000,
            max_waiting=arguments.integer("max_waiting"),
        )
        self.config = engine.config
        self.endpoint = triton_io.MetricsEndpoint(METRICS, arguments.model)
        self.worker = Worker(engine, max_seconds=arguments.integer("max_seconds"), publish=self.endpoint.publish)

    def execute(self, requests):
        for request in requests:
            self.take(request, triton_io.Reply(request))
        return None

    def take(self, request, reply):
        task = OTHER_TASK
        try:
            task = task_label(triton_io.text(request, "ANSWER_KEY"))
            self.worker.submit(self.job(request, reply, task))
        except Exception as error:  # nothing may be raised once a reply was taken: it would close all of them
            self.worker.recorder.refused(task, error)
            reply.fail(error)

    def job(self, request, reply, task):
        asked = Request(
            image_features=triton_io.required(request, "IMAGE_FEATURES"),
            prompt_ids=triton_io.required(request, "PROMPT_IDS").tolist(),
            options=triton_io.generation_options(request, self.config),
        )
        return Job(asked, lambda outcome: answer(reply, outcome), reply.is_cancelled, reply.deadline, task)

    def finalize(self):
        self.worker.stop()


def answer(reply, outcome):
    if not isinstance(outcome, Generation):
        return reply.fail(outcome)
    reply.send(
        {
            "TOKENS": np.array(outcome.tokens, np.int32),
            "LOG_PROBS": np.array(outcome.log_probs, np.float32),
            "FINISH_REASON": triton_io.strings(outcome.finish_reason),
            "NUM_TOKENS": np.array([len(outcome.tokens)], np.int32),
            "SEQUENCE_SCORE": np.array([outcome.score], np.float32),
        }
    )
