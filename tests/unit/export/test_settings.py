"""Test settings in every form that transformers reads, and those that the server cannot follow."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from florence2.config import ModelConfig
from florence2.errors import CheckpointError
from florence2_client.cli import main
from florence2_export.checkpoint import read_checkpoint
from florence2_export.parity import draw_images
from florence2_export.reference import load_reference, reference_features
from florence2_export.settings import limit_prompts
from florence2_export.vision import VisionEncoder

SQUARE = {"height": 192, "width": 192}


def edited(copy, **settings):
    copy.edit("processor_config.json", lambda config: config["image_processor"].update(settings))
    return copy


@pytest.mark.parametrize(
    ("settings", "noted"),
    [
        ({"size": 192}, True),
        ({"size": 192, "crop_size": 192}, True),
        ({"size": {"shortest_edge": 192}}, True),
        ({"size": [192, 192]}, False),
        ({"size": SQUARE, "crop_size": 192, "do_center_crop": True}, False),
        ({"crop_size": None}, False),
    ],
    ids=str,
)
def test_a_size_in_any_form_is_the_same_size(copy, checkpoint, settings, noted):
    """One integer keeps the aspect in transformers, which Florence-2 can follow only for square images."""
    read = edited(copy, **settings).read()
    assert read.config.image == checkpoint.config.image
    assert [f"images are resized to {192} x {192}" in note for note in read.notes] == [True] * noted
    images, reference = draw_images(read.config.image, 1), load_reference(checkpoint)
    theirs = torch.from_numpy(reference_features(checkpoint, reference, images))
    assert torch.equal(torch.from_numpy(reference_features(read, reference, images)), theirs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": "large"}, "size is large, but the server needs one height and one width"),
        ({"size": {"longest_edge": 192}}, "needs one height and one width"),
        ({"size": {"height": 192}}, "needs one height and one width"),
        ({"size": {"height": 192, "width": 0}}, "needs one height and one width"),
        ({"size": [192]}, "needs one height and one width"),
        ({"size": 192.5}, "needs one height and one width"),
        ({"size": 768}, "images of 768 x 768 pixels give a feature map of 24 x 24"),
        ({"size": 192, "crop_size": 192, "do_center_crop": True}, "differ from Florence-2's in do_center_crop"),
        ({"crop_size": {"height": 96, "width": 96}, "do_center_crop": True}, "in do_center_crop"),
        ({"do_pad": True}, "in do_pad"),
        ({"image_std": 0}, "in image_mean or image_std"),
        ({"image_mean": [0.5, 0.5]}, "missing or invalid"),
        ({"resample": "bicubic"}, "in resample"),
        ({"resample": 17}, "in resample"),
        ({"rescale_factor": 1.0}, "in rescale_factor"),
    ],
    ids=str,
)
def test_settings_that_the_server_cannot_follow_are_refused(copy, settings, words):
    """The sentence says what was found."""
    with pytest.raises(CheckpointError) as caught:
        edited(copy, **settings).read()
    assert words in str(caught.value)


def test_one_number_normalizes_all_channels(copy):
    """transformers reads a mean and a spread in this form, too."""
    image = edited(copy, image_mean=0.5, image_std=0.25).read().config.image
    assert (image.mean, image.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("size", "tokens"), [(1, 2), (31, 2), (32, 2), (33, 5), (64, 5), (70, 10), (192, 37), (384, 145)]
)
def test_images_of_another_size_are_encoded_as_in_transformers(demo, size, tokens):
    """Any size works whose feature map has a position embedding for each place; it need not be a multiple of 32."""
    read = read_checkpoint(str(demo), image_size=size)
    image = read.config.image
    assert (image.height, image.width, image.tokens) == (size, size, tokens)
    assert f"images are resized to {size} x {size}" in read.notes[0]
    images = draw_images(image, 1)
    theirs = reference_features(read, load_reference(read), images)
    with torch.inference_mode():
        ours = VisionEncoder(read).eval()(torch.from_numpy(np.stack(images)))
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


def test_an_image_size_replaces_only_the_size(copy, checkpoint):
    """Other image settings stay those of the processor, also if its own size would be refused."""
    read = read_checkpoint(str(edited(copy, size=768, image_mean=0.5).path), image_size=192)
    assert read.config.image == replace(checkpoint.config.image, mean=(0.5,) * 3)
    assert len(read.notes) == 1


def test_an_image_size_without_positions_for_it_is_refused(copy, demo):
    """The sentence names the largest size: of the image's positions, or of the language model's."""
    with pytest.raises(CheckpointError, match="has 12 image positions per axis; choose an --image-size of at most 384"):
        read_checkpoint(str(demo), image_size=385)
    copy.edit("config.json", lambda config: config["vision_config"].update(max_position_embeddings=32))
    name = "_embeddings.weight"
    copy.reweigh(
        lambda weights: weights.update(
            {key: weights[key].repeat(3, 1)[:32] for key in weights if key.endswith(("row" + name, "column" + name))}
        )
    )
    with pytest.raises(CheckpointError, match=r"530 of the model's 512 positions.* choose a smaller --image-size"):
        read_checkpoint(str(copy.path), image_size=736)


@pytest.mark.parametrize("value", ["0", "-64", "64x64", "64.5", "", "six"])
def test_an_image_size_is_a_number_of_pixels(value, capsys):
    """The command names its argument in one sentence."""
    assert main(["export", "demo/checkpoint", "--image-size", value]) == 2
    assert "--image-size takes a whole number of pixels, such as 64" in capsys.readouterr().err


def test_positions_must_leave_room_for_a_prompt(copy):
    """Base has 1024 positions, of which an image takes 577."""
    name = "embed_positions.weight"
    copy.edit("config.json", lambda config: config["text_config"].update(max_position_embeddings=40))
    copy.reweigh(lambda weights: weights.update({key: weights[key][:42] for key in weights if key.endswith(name)}))
    with pytest.raises(CheckpointError, match="192 pixels takes 37 of the model's 40 positions, which leaves no room"):
        copy.read()


def test_prompts_are_as_long_in_large_as_in_base(copy):
    """Memory is kept for the longest, so the decoder's positions do not decide."""
    config = copy.read().config
    config = replace(config, image=replace(config.image, tokens=577))
    for positions, prompt in ((1024, 447), (4096, 447), (600, 23)):
        sized = replace(config, text=replace(config.text, max_positions=positions))
        assert (sized.max_prompt_tokens, sized.encoder_positions) == (prompt, 577 + prompt)


def test_a_limit_of_prompts_can_be_chosen(copy, tmp_path):
    """It is saved; files of exports before there was a limit have the default."""
    config = copy.read().config
    limit_prompts(config, 20).save(tmp_path / "florence2.json")
    assert ModelConfig.load(tmp_path / "florence2.json").max_prompt_tokens == 20
    assert limit_prompts(config, None) is config
    values = json.loads((tmp_path / "florence2.json").read_text())
    del values["prompt_tokens"]
    assert ModelConfig.from_dict(values).prompt_tokens == 447
    left = config.text.max_positions - config.image.tokens
    for tokens in (-1, 0, 13, left + 1):
        with pytest.raises(CheckpointError, match=f"must be from 14, which the tasks need, to {left}, .* not {tokens}"):
            limit_prompts(config, tokens)
