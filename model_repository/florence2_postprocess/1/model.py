"""Postprocess: generated tokens -> the answer as JSON, with coordinates in the client's image."""

import json

import numpy as np

from florence2 import config, parsing
from florence2.calibration import Calibration
from florence2.errors import InvalidRequest
from florence2.tokenizer import Tokenizer
from florence2.triton import adapter


class TritonPythonModel:
    def initialize(self, args):
        directory = adapter.Arguments(args).directory
        self.config = config.ModelConfig.load(directory / config.FILE_NAME)
        self.calibration = Calibration.load(directory)
        self.tokenizer = Tokenizer(directory / "tokenizer.json")

    def execute(self, requests):
        return adapter.respond_to_each(requests, self.postprocess)

    def postprocess(self, request):
        tokens = adapter.required(request, "TOKENS", self.config.max_new_tokens)
        log_probs = adapter.required(request, "LOG_PROBS", self.config.max_new_tokens)
        log_masses = adapter.array(request, "LOG_MASSES", self.config.max_new_tokens)
        size = adapter.required(request, "IMAGE_SIZE")
        key = adapter.required_text(request, "ANSWER_KEY")
        unfinished = adapter.text(request, "FINISH_REASON") == ""
        self.check(tokens, {"LOG_PROBS": log_probs, "LOG_MASSES": log_masses}, size)
        pieces = self.tokenizer.pieces(
            tokens.tolist(), log_probs.tolist(), None if log_masses is None else log_masses.tolist()
        )
        grammar = self.config.grammar(key)
        text = self.tokenizer.decode(tokens.tolist())
        if unfinished:
            pieces, text = parsing.without_open_end(grammar, pieces), parsing.without_half_character(text)
        answer = parsing.parse(grammar, pieces, tuple(size.tolist()), self.config.banned_phrases)
        answer = self.calibration.applied(key, answer)
        return {
            "RESULT": adapter.strings(json.dumps({key: answer.to_json()}, ensure_ascii=False)),
            "GENERATED_TEXT": adapter.strings(text),
            "TOKEN_LOG_PROBS": adapter.strings(self.tokenizer.log_probs_as_json(tokens.tolist(), log_probs.tolist())),
            "IMAGE_SIZE": size,
        }

    def check(self, tokens, logarithms, size):
        """Raise InvalidRequest on what the decoder would never send: clients can call this model without it."""
        if not np.all((tokens >= 0) & (tokens < self.config.tokens.known)):
            raise InvalidRequest("TOKENS holds an id that is not in the vocabulary")
        for name, values in logarithms.items():
            if values is not None and len(tokens) != len(values):
                raise InvalidRequest(f"TOKENS and {name} must have the same length")
            if values is not None and not np.all(values <= 0):
                raise InvalidRequest(f"{name} must be logarithms of probabilities, so 0 at most")
        if size.min() < 1:
            raise InvalidRequest("IMAGE_SIZE must be at least 1 x 1")
