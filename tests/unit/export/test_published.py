"""Export the published checkpoints' real configs, tokenizers and processors with small random weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Florence2Config, Florence2ForConditionalGeneration

from florence2.config import ModelConfig
from florence2_export.pipeline import export_checkpoint
from tests.reference import shared
from tests.unit.export.test_layouts import microsoft_name

TEXT = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}  # fmt: skip
VISION = {"num_heads": [1, 2, 4, 8], "num_groups": [1, 2, 4, 8], "depths": [1, 1, 1, 1], "projection_dim": 64}
CHANNELS = [16, 32, 64, 128]


def shrunk(config: dict, channels: str) -> dict:
    """Return a config with fewer and smaller layers. `channels` is the layout's name of the encoder's widths."""
    config["text_config"].pop("num_hidden_layers", None)  # another name of encoder_layers
    config["text_config"] |= TEXT
    config["vision_config"] |= {**VISION, channels: CHANNELS}
    config["projection_dim"] = 64
    return config


def random_weights(config: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(Florence2Config.from_dict(config)).half()
    weights = model.state_dict()
    tied = ("lm_head.weight", "model.language_model.encoder.embed_tokens.weight",
            "model.language_model.decoder.embed_tokens.weight")  # fmt: skip
    return {name: tensor.contiguous() for name, tensor in weights.items() if name not in tied}


def native(folder: Path) -> None:
    """Write random weights in transformers' layout."""
    config = shrunk(json.loads((folder / "config.json").read_text()), "embed_dim")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights(config), folder / "model.safetensors")


def microsoft(folder: Path) -> None:
    """Write random weights in Microsoft's layout, as a pickle in two shards."""
    weights = random_weights(
        shrunk(json.loads((shared("checkpoints/Florence-2-base/config.json")).read_text()), "embed_dim")
    )
    weights = {microsoft_name(key): tensor for key, tensor in weights.items()}
    weights["image_projection"] = weights["image_projection"].T.contiguous()
    weights["language_model.model.shared.weight"] = weights["language_model.model.shared.weight"][:51289].clone()
    weights["language_model.final_logits_bias"] = torch.zeros(1, 51289)
    config = shrunk(json.loads((folder / "config.json").read_text()), "dim_embed")
    (folder / "config.json").write_text(json.dumps(config))
    places = {key: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, key in enumerate(weights)}
    for shard in set(places.values()):
        torch.save({key: weights[key] for key in weights if places[key] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("name", "make", "positions", "rows"),
    [
        ("Florence-2-base", native, 1024, 51328),
        ("Florence-2-large", native, 4096, 51328),
        ("microsoft-Florence-2-base", microsoft, 1024, 51289),
    ],
)
def test_every_published_checkpoint_exports(tmp_path, name, make, positions, rows):
    """Positions, vocabulary, image size and defaults are the published ones, and the report passes."""
    folder = shutil.copytree(shared(f"checkpoints/{name}"), tmp_path / name)
    make(folder)
    said: list[str] = []
    assert export_checkpoint(str(folder), tmp_path / "repository", output=said.append, precision="float32"), said
    assert "6 of 6" in said[-2]
    config = ModelConfig.load(tmp_path / "repository" / "florence2_decoder" / "1" / "florence2.json")
    assert (config.text.max_positions, config.text.vocab_size, config.tokens.known) == (positions, rows, 51289)
    assert (config.image.height, config.image.width, config.image.tokens) == (768, 768, 577)
    assert (config.generation.num_beams, config.generation.no_repeat_ngram_size) == (3, 3)
    assert (config.tokens.bos, config.tokens.pad, config.tokens.eos, config.tokens.first_location) == (0, 1, 2, 50269)
