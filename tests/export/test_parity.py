"""The parity report passes on what is right (see test_pipeline) and notices what is wrong, stage by stage."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration

from export import parity
from export.layouts import EMBEDDING, HEAD
from export.language import export_language_model
from florence2.engine.engine import Engine


@pytest.fixture(scope="module")
def reference(checkpoint) -> Florence2ForConditionalGeneration:
    return parity.load_reference(checkpoint)


@pytest.fixture
def decoder(exported, tmp_path):
    """A copy of the exported decoder to damage."""
    return shutil.copytree(exported[0] / "florence2_decoder" / "1", tmp_path / "decoder")


def nudge(decoder, name: str) -> None:
    weights = load_file(decoder / "model.safetensors")
    torch.manual_seed(0)
    weights[name] += 0.5 * torch.randn_like(weights[name])
    save_file(weights, decoder / "model.safetensors")


def test_one_wrong_feature_fails_the_vision_stage():
    """The largest error decides, not the mean; NaN is never close."""
    theirs = np.zeros((3, 5, 7), np.float32)
    assert parity.compare_features([theirs[-1:], theirs], theirs).passed
    for wrong in (0.1, np.nan, np.inf):
        ours = theirs.copy()
        ours[1, 2, 3] = wrong
        assert not parity.compare_features([theirs[-1:], ours], theirs).passed


def test_pictures_are_of_the_models_size_and_always_the_same(checkpoint):
    """So that an export's report can be compared with yesterday's."""
    image = checkpoint.config.image
    first, second = parity.draw_pictures(image, 3), parity.draw_pictures(image, 3)
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in second]
    assert {picture.size for picture in first} == {(image.width, image.height)}
    assert len({picture.tobytes() for picture in first}) == 3


def test_a_changed_or_missing_tensor_fails_the_language_stage(decoder, reference):
    """By name, so that the report says where to look."""
    assert parity.compare_weights(decoder, reference).passed
    nudge(decoder, "decoder.layers.0.fc1.bias")
    report = parity.compare_weights(decoder, reference)
    assert not report.passed and "decoder.layers.0.fc1.bias" in str(report)
    weights = load_file(decoder / "model.safetensors")
    del weights["decoder.layers.0.fc1.bias"]
    save_file(weights, decoder / "model.safetensors")
    assert not parity.compare_weights(decoder, reference).passed


def test_an_untied_head_is_exported_and_compared(copy, decoder):
    """The head of such a fine-tune is not the embedding, here as in transformers."""
    copy.reweigh(lambda weights: weights.update({HEAD: weights[EMBEDDING].flip(0)}))
    untied = copy.read()
    reference = parity.load_reference(untied)
    assert not parity.compare_weights(decoder, reference).passed
    export_language_model(untied.weights, decoder / "model.safetensors")
    assert parity.compare_weights(decoder, reference).passed
    assert answers(decoder, untied, reference).passed


def answers(decoder, checkpoint, reference):
    image, text = checkpoint.config.image, checkpoint.config.text
    features = np.random.default_rng(0).standard_normal((2, image.tokens, text.d_model)).astype(np.float32)
    prompts = [checkpoint.tokenizer.encode(f"<s>{text}</s>").ids for text in ("a", "What does the image describe?")]
    return parity.compare_answers(Engine.load(decoder), reference, features, features, prompts)


def test_other_tokens_fail_the_answers_stage(decoder, checkpoint, reference):
    """Both greedy and with the checkpoint's beams."""
    report = answers(decoder, checkpoint, reference)
    assert report.passed and "4 of 4" in str(report) and "1 and 3 beams" in str(report)
    nudge(decoder, "decoder.layers.1.fc1.weight")
    assert not answers(decoder, checkpoint, reference).passed
