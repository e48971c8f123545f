"""Decoder: image features and prompt tokens -> generated tokens, by the in-flight batching engine.

`execute` hands each request to the engine and returns None, so Triton delivers the next requests while these are being
decoded; the engine's sender thread responds. Where config.pbtxt makes the model decoupled, a request also gets its
answer so far, again and again, each with the tensors that postprocess needs for it (docs/adr/0005).
"""

import numpy as np

from florence2.engine.beam import Generation
from florence2.engine.engine import Engine
from florence2.engine.metrics import ANSWER_HITS, METRICS, OTHER_TASK, task_label
from florence2.engine.sender import Job
from florence2.engine.sequence import Request
from florence2.engine.worker import Worker
from florence2.triton import adapter
from florence2.triton.admission import Tickets
from florence2.triton.answer_cache import AnswerCache

PASSED_ON = ("ANSWER_KEY", "IMAGE_SIZE")  # with every response of a stream: see `contract.STREAM_DECODER`


class TritonPythonModel:
    def initialize(self, args):
        arguments = adapter.Arguments(args)
        engine = Engine.load(
            arguments.directory,
            device=arguments.device,
            rows=arguments.integer("rows"),
            kv_cache_bytes=arguments.integer("kv_cache_mib") * 2**20,
            prefill_seconds=arguments.integer("prefill_ms") / 1000,
            max_waiting=arguments.integer("max_waiting"),
        )
        self.config, self.streams = engine.config, arguments.streams
        self.tickets, self.answers = Tickets.of_this_server(), AnswerCache.of_this_server()
        self.endpoint = adapter.MetricsEndpoint(METRICS, arguments.labels, None if self.streams else self.tickets)
        self.worker = Worker(engine, max_seconds=arguments.integer("max_seconds"), publish=self.endpoint.publish)
        self.worker.recorder.count(ANSWER_HITS, 0, OTHER_TASK)  # published from the start

    def execute(self, requests):
        for request in requests:
            reply, task = adapter.Reply(request, self.tickets), OTHER_TASK
            try:
                reply.enter(request)
                task = task_label(adapter.text(request, "ANSWER_KEY"))
                self.start(request, reply, task)
            except Exception as error:  # raising here would close the reply of every request in this call
                self.worker.recorder.refused(task, error)
                reply.fail(error)

    def start(self, request, reply, task):
        """Answer from the cache, if there is one and the request can be; else let the engine do it."""
        decoded = Request(
            image_features=adapter.required(request, "IMAGE_FEATURES"),
            prompt_ids=adapter.required(request, "PROMPT_IDS", self.config.max_prompt_tokens).tolist(),
            options=adapter.generation_options(request, self.config, greedy=self.streams),
        )
        more = {"NUM_PROMPT_TOKENS": np.array([self.config.image.tokens + len(decoded.prompt_ids)], np.int32)}
        if self.streams:
            more |= {name: adapter.required(request, name) for name in PASSED_ON}

        def answer(outcome):
            if isinstance(outcome, Generation):
                self.answers.put(key, outcome)
                reply.send(adapter.generation_tensors(outcome) | more)
            else:
                reply.fail(outcome)

        def follow(so_far):
            reply.send_so_far(adapter.generation_tensors(so_far) | more)

        key = self.answers.key(decoded)
        if kept := self.answers.get(key):
            self.worker.recorder.repeated(task, kept)
            return answer(kept)
        watched = reply.is_cancelled, reply.deadline, reply.start_by
        self.worker.submit(Job(decoded, answer, *watched, task, follow if self.streams else None))

    def finalize(self):
        self.worker.stop()
