"""The config of a tiny language model, for tests with random weights."""

from florence2.config import (
    GenerationDefaults,
    ImageConfig,
    ModelConfig,
    TextConfig,
    TokenConfig,
)


def tiny_config() -> ModelConfig:
    return ModelConfig(
        image=ImageConfig(32, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 3, tokens=5),
        text=TextConfig(40, 16, 1, 2, 2, 4, 24, 32, max_positions=48, scale_embedding=False),
        tokens=TokenConfig(bos=0, pad=1, eos=2, decoder_start=2, first_location=20, known=37),
        generation=GenerationDefaults(forced_bos=0, forced_eos=2),
        banned_phrases=(),
        source="random weights",
    )
