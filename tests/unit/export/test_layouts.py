"""Test that Microsoft's layout reads as the native one. The tests build it from published names, not from our table."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Florence2Config

from florence2.tasks import BANNED_PHRASES
from florence2_export import layouts
from florence2_export.checkpoint import read_checkpoint
from florence2_export.layouts import EMBEDDING

SHARED = Path(__file__).parents[4] / "shared"
PUBLISHED = SHARED / "checkpoints"
KEYS = SHARED / "facts" / "microsoft_base_keys.tsv"


def microsoft_name(native: str) -> str:
    """Return Microsoft's name of a weight, such as vision_tower.blocks.0.0.spatial_block.window_attn.fn.qkv.weight,
    vision_tower.convs.0.proj.bias, language_model.model.shared.weight.
    """
    if native.startswith("model.language_model."):
        return native.replace("model.language_model.", "language_model.model.")
    if native.startswith("lm_head."):
        return f"language_model.{native}"
    if native.startswith("model.multi_modal_projector."):
        name = native.replace("model.multi_modal_projector.", "").replace("image_position_embed", "image_pos_embed")
        return "image_projection" if name == "image_projection.weight" else name
    *path, block, layer, kind = native.removeprefix("model.").split(".")
    attention = "window_attn" if "spatial_block" in native else "channel_attn"
    parts = {
        "norm1": [attention, "norm"],
        "norm2": ["ffn", "norm"],
        "qkv": [attention, "fn", "qkv"],
        "proj": [attention, "fn", "proj"],
        "fc1": ["ffn", "fn", "net", "fc1"],
        "fc2": ["ffn", "fn", "net", "fc2"],
        "conv1": ["conv1", "fn", "dw"],
        "conv2": ["conv2", "fn", "dw"],
        "conv": ["proj"],
        "norm": ["norm"],
    }[layer]
    outer = [] if block in ("window_attn", "channel_attn", "ffn") else [block]
    return ".".join([*path, *outer, *parts, kind])


@pytest.fixture
def microsoft(demo, checkpoint, tmp_path) -> Path:
    """Return the bundled checkpoint as Microsoft would save it."""
    weights = {microsoft_name(name): tensor for name, tensor in checkpoint.weights.items()}
    weights["image_projection"] = weights["image_projection"].T
    weights["language_model.final_logits_bias"] = torch.zeros(1, len(checkpoint.weights[EMBEDDING]))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    config = json.loads((demo / "config.json").read_text())
    vision = config["vision_config"]
    vision["dim_embed"] = vision.pop("embed_dim")
    vision["image_pos_embed"] = {"max_pos_embeddings": vision.pop("max_position_embeddings"), "type": "learned_abs_2d"}
    vision["visual_temporal_embedding"] = {"max_temporal_embeddings": vision.pop("max_temporal_embeddings")}
    vision["model_type"] = "davit"
    config["text_config"] |= {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 3}
    config["projection_dim"] = vision["projection_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 3, "early_stopping": False}))
    processor = json.loads((demo / "processor_config.json").read_text())["image_processor"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    shutil.copy(demo / "tokenizer.json", tmp_path)
    return tmp_path


def test_microsofts_layout_holds_the_same_checkpoint(microsoft, checkpoint):
    """Every weight arrives under its native name, the projection transposed, and the settings agree."""
    read = read_checkpoint(str(microsoft))
    assert read.microsoft and not checkpoint.microsoft
    assert not read.notes
    assert read.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(read.weights[name], checkpoint.weights[name]) for name in read.weights)
    ours = {field: getattr(read.config, field) for field in ("image", "text", "tokens", "generation", "banned_phrases")}
    assert ours == {field: getattr(checkpoint.config, field) for field in ours}


@pytest.mark.skipif(not KEYS.exists(), reason="needs the list of published names")
def test_every_published_name_of_base_is_known():
    """These are the 669 names of microsoft/Florence-2-base, one of which is dropped."""
    rows = list(csv.DictReader(KEYS.open(), delimiter="\t"))
    assert len(rows) > 660
    for row in rows:
        if row["microsoft_key"] == layouts.DROPPED:
            assert row["transform"].startswith("drop")
        else:
            assert layouts.native_name(row["microsoft_key"]) == row["native_key"]
        assert (row["transform"] == "transpose") == (row["microsoft_key"] == layouts.TRANSPOSED)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs the published configs")
def test_microsofts_published_files_agree_with_the_native_ones():
    """The tokenizer is completed as by Microsoft's processor, the config translated as by transformers' converter."""
    ours = Tokenizer.from_file(str(PUBLISHED / "microsoft-Florence-2-base" / "tokenizer.json"))
    theirs = Tokenizer.from_file(str(PUBLISHED / "Florence-2-base" / "tokenizer.json"))
    layouts.complete_tokenizer(ours)
    layouts.complete_tokenizer(ours)  # fine-tunes have them already
    assert {**ours.get_vocab(), "<image>": 51289} == theirs.get_vocab()
    for text in ("<s>What is the region <loc_5><loc_999>?</s>", "café\n中文 <poly> <and></s>"):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids
    microsoft, native = (
        json.loads((PUBLISHED / name / "config.json").read_text())
        for name in ("microsoft-Florence-2-base", "Florence-2-base")
    )
    translated = Florence2Config.from_dict(layouts.native_config(microsoft)).vision_config
    expected = Florence2Config.from_dict(native).vision_config
    for field in ("embed_dim", "depths", "num_heads", "window_size", "max_position_embeddings", "projection_dim"):
        assert getattr(translated, field) == getattr(expected, field)


def test_a_native_config_stays_as_it_is(demo):
    """Native files keep some of Microsoft's names next to their own, which take precedence."""
    config = json.loads((demo / "config.json").read_text())
    assert layouts.native_config(config)["vision_config"] == config["vision_config"]
    config["vision_config"]["dim_embed"] = [1, 2, 3, 4]
    config["vision_config"]["image_pos_embed"] = {"max_pos_embeddings": 1}
    config["vision_config"]["visual_temporal_embedding"] = {"max_temporal_embeddings": 1}
    assert layouts.native_config(config)["vision_config"]["embed_dim"] == config["vision_config"]["embed_dim"]


def test_the_stock_phrases_are_those_of_native_checkpoints(checkpoint):
    """The bundled checkpoint's processor was saved by transformers with Florence-2's list."""
    assert checkpoint.config.banned_phrases == BANNED_PHRASES
