"""Build and save the toy model: tokenizer, processor and an untrained model in Florence-2's native format.

The names and the layout are Florence-2's, only the sizes are small. `train.py` builds a new model and saves checkpoints
with these functions.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from tools.toy_model import scenes

BUNDLED = Path(__file__).parents[2] / "demo" / "checkpoint"
IMAGE_SIZE = 192
GRID = IMAGE_SIZE // 32
IMAGE_TOKENS = GRID * GRID + 1
LOCATION_COUNT = 1000
BOS, PAD, EOS = 0, 1, 2

TEXT_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TASK_TOKENS = (
    ["<od>", "</od>", "<ocr>", "</ocr>"]
    + [f"<loc_{index}>" for index in range(LOCATION_COUNT)]
    + "<cap> </cap> <ncap> </ncap> <dcap> </dcap> <grounding> </grounding> <seg> </seg> <sep>".split()
    + "<region_cap> </region_cap> <region_to_desciption> </region_to_desciption>".split()
    + "<proposal> </proposal> <poly> </poly> <and> <image>".split()
)


def new_tokenizer(scene_count: int = 3000) -> Tokenizer:
    """Train a byte-level BPE on the scenes' own prompts and answers, and add Florence-2's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=TEXT_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=50,
        show_progress=False,
    )
    tokenizer.train_from_iterator(scene_texts(scene_count), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TASK_TOKENS])
    return tokenizer


def scene_texts(scene_count: int) -> Iterator[str]:
    for seed in range(scenes.FIRST_TRAINING_SEED, scenes.FIRST_TRAINING_SEED + scene_count):
        for example in scenes.make_examples(scenes.make_scene(seed), seed).values():
            for text in (example.prompt, example.target):
                yield re.sub(r"<loc_\d+>", " ", text)


def new_processor() -> Florence2Processor:
    """Return a processor with a new tokenizer and Florence-2's pixel statistics and answer grammar."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=new_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_max_length=512,
        extra_special_tokens={"image_token": "<image>"},
    )
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pixels = CLIPImageProcessor(
        size=square,
        crop_size=square,
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    pixels.image_seq_length = IMAGE_TOKENS
    grammar = json.loads((BUNDLED / "processor_config.json").read_text())["post_processor_config"]
    return Florence2Processor(pixels, tokenizer, num_additional_image_tokens=0, post_processor_config=grammar)


def new_model(processor: Florence2Processor) -> Florence2ForConditionalGeneration:
    """Return an untrained model of 3 million parameters for this processor's tokenizer."""
    config = Florence2Config(
        vision_config={
            "embed_dim": [24, 48, 96, 192],
            "depths": [1, 1, 2, 1],
            "num_heads": [2, 4, 6, 8],
            "num_groups": [2, 4, 6, 8],
            "window_size": 6,
            "drop_path_rate": 0.0,
            "projection_dim": 128,
            "max_position_embeddings": 12,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(processor.tokenizer),
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 384,
            "decoder_ffn_dim": 384,
            "max_position_embeddings": 512,
            "bos_token_id": BOS,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "decoder_start_token_id": EOS,
            "forced_eos_token_id": EOS,
            "dropout": 0.0,
        },
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Florence2ForConditionalGeneration(config)
    first_location = processor.tokenizer.convert_tokens_to_ids("<loc_0>")
    with torch.no_grad():
        rows = model.get_input_embeddings().weight[first_location : first_location + LOCATION_COUNT]
        rows += 0.02 * smooth_positions(rows.shape[1])
    return model


def smooth_positions(width: int) -> torch.Tensor:
    """Return sines and cosines [1000, width], so that neighboring locations start alike and learn together."""
    position = torch.arange(LOCATION_COUNT).float()[:, None] / LOCATION_COUNT
    frequency = torch.exp(torch.linspace(0, math.log(60), width // 2))
    phase = math.pi * position * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def load(checkpoint: Path) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Load a checkpoint folder's model, in float32, and its processor."""
    model = Florence2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(checkpoint)


def save(model: Florence2ForConditionalGeneration, processor: Florence2Processor, folder: Path) -> None:
    """Write a checkpoint in float16 next to `folder`, then swap it in, so that no reader sees half of one."""
    written, replaced = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (written, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    model.generation_config = stock_generation_defaults()
    for config in (model.config.text_config, model.config.vision_config):
        config.dtype = torch.float16
    model.half().save_pretrained(written)
    model.float()
    for loading_detail in ("is_local", "local_files_only"):
        processor.tokenizer.init_kwargs.pop(loading_detail, None)
    processor.save_pretrained(written)
    for file in written.iterdir():
        file.chmod(0o644)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(written, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def stock_generation_defaults() -> GenerationConfig:
    return GenerationConfig(
        num_beams=3,
        early_stopping=True,
        no_repeat_ngram_size=3,
        forced_bos_token_id=BOS,
        forced_eos_token_id=EOS,
        decoder_start_token_id=EOS,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
