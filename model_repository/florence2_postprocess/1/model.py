"""Postprocess: generated tokens -> the answer as JSON, in pixels of the caller's picture."""

import json

from florence2 import config, parsing, triton_io
from florence2.tasks import TASKS, Grammar
from florence2.tokenizer import Tokenizer


class TritonPythonModel:
    def initialize(self, args):
        directory = triton_io.Arguments(args).directory
        self.banned_phrases = config.ModelConfig.load(directory / config.FILE_NAME).banned_phrases
        self.tokenizer = Tokenizer(directory / "tokenizer.json")

    def execute(self, requests):
        return triton_io.answer_all(requests, self.postprocess)

    def postprocess(self, request):
        tokens = triton_io.required(request, "TOKENS").tolist()
        log_probs = triton_io.required(request, "LOG_PROBS").tolist()
        size = tuple(triton_io.required(request, "IMAGE_SIZE").tolist())
        key = triton_io.text(request, "ANSWER_KEY")
        grammar = TASKS[key].grammar if key in TASKS else Grammar.TEXT
        pieces = self.tokenizer.pieces(tokens, log_probs)
        answer = parsing.parse(grammar, pieces, size, self.banned_phrases)
        return {
            "RESULT": triton_io.strings(json.dumps({key: answer.to_json()}, ensure_ascii=False)),
            "GENERATED_TEXT": triton_io.strings(self.tokenizer.decode(tokens)),
        }
