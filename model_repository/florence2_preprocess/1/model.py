"""Preprocess: encoded picture, task and text -> pixels of the model's size and prompt tokens.

All of a caller's mistakes are found here, before the encoder spends time on the picture.
"""

import numpy as np

from florence2 import config, images, prompts, triton_io
from florence2.errors import InvalidPrompt
from florence2.tokenizer import Tokenizer


class TritonPythonModel:
    def initialize(self, args):
        directory = triton_io.Arguments(args).directory
        self.config = config.ModelConfig.load(directory / config.FILE_NAME)
        self.tokenizer = Tokenizer(directory / "tokenizer.json")

    def execute(self, requests):
        return triton_io.answer_all(requests, self.preprocess)

    def preprocess(self, request):
        triton_io.generation_options(request, self.config)  # only checked here; the decoder reads them again
        image = self.read_image(request)
        task, text = triton_io.required_text(request, "TASK"), triton_io.text(request, "TEXT")
        prompt = prompts.build_prompt(task, text, image.size)
        return {
            "PIXELS": images.to_pixels(image, self.config.image),
            "PROMPT_IDS": self.encode(prompt.text),
            "IMAGE_SIZE": np.array(image.size, np.int32),
            "ANSWER_KEY": triton_io.strings(prompt.key),
        }

    def read_image(self, request):
        encoded = images.encoded_image(triton_io.required_scalar(request, "IMAGE"))
        return images.decode_image(encoded, self.config.image.max_pixels)

    def encode(self, prompt):
        ids = self.tokenizer.encode_prompt(prompt)
        if len(ids) > self.config.max_prompt_tokens:
            raise InvalidPrompt(
                f"the prompt has {len(ids)} tokens; this model takes at most {self.config.max_prompt_tokens}"
            )
        return np.array(ids, np.int32)
