"""Preprocess: encoded image, task and text -> pixels of the model's size, and prompt tokens.

Every mistake of a client is found here, before the encoder spends time on the image. A full server refuses the request
here too, before its image takes memory.
"""

import numpy as np

from florence2 import config, images, prompts
from florence2.contract import PREPROCESS
from florence2.errors import InvalidPrompt
from florence2.tokenizer import Tokenizer
from florence2.triton import adapter
from florence2.triton.admission import NO_TICKET, Tickets

FOR_ENSEMBLE = {tensor.name for tensor in PREPROCESS.outputs if not tensor.direct_only}


class TritonPythonModel:
    def initialize(self, args):
        arguments = adapter.Arguments(args)
        directory = arguments.directory
        self.config = config.ModelConfig.load(directory / config.FILE_NAME)
        self.tokenizer = Tokenizer(directory / "tokenizer.json")
        limits = arguments.integer("max_inside"), arguments.integer("max_wait_seconds")
        self.tickets = Tickets.of_this_server(*limits)

    def execute(self, requests):
        return adapter.respond_to_each(requests, self.preprocess)

    def preprocess(self, request):
        adapter.require_no_parameters(request)
        adapter.generation_options(request, self.config)  # only checked here; the decoder reads them again
        # A client that calls this model by itself would not bring the ticket to the decoder.
        by_ensemble = set(request.requested_output_names()) == FOR_ENSEMBLE
        ticket = self.tickets.take(adapter.timeout(request)) if by_ensemble else NO_TICKET
        try:
            outputs = self.read(request)
            if ticket != NO_TICKET:
                self.tickets.note_pixels(ticket, outputs["PIXELS"])
            return outputs | {"TICKET": np.array([ticket], np.int64)}
        except BaseException:
            self.tickets.give_back(ticket)
            raise

    def read(self, request):
        encoded = images.encoded_image(adapter.required_scalar(request, "IMAGE"))
        image = images.decode_image(encoded, self.config.image.max_pixels)
        task, text = adapter.required_text(request, "TASK"), adapter.text(request, "TEXT")
        prompt = prompts.build_prompt(task, text, image.size)
        return {
            "PIXELS": images.to_pixels(image, self.config.image),
            "PROMPT_IDS": self.encode(prompt.text),
            "IMAGE_SIZE": np.array(image.size, np.int32),
            "ANSWER_KEY": adapter.strings(prompt.key),
            "PROMPT": adapter.strings(prompt.text),
        }

    def encode(self, prompt):
        ids = self.tokenizer.encode_prompt(prompt)
        if len(ids) > self.config.max_prompt_tokens:
            raise InvalidPrompt(
                f"the prompt has {len(ids)} tokens, but the model takes at most {self.config.max_prompt_tokens}; "
                "send a shorter text"
            )
        return np.array(ids, np.int32)
