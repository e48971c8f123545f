"""Tiles and crops on a live server with the bundled checkpoint, which sees 192 x 192 pixels of any image."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from bench.harness import embedded_server
from florence2_client import Client, Tiles
from florence2_export.checkpoint import read_checkpoint
from florence2_export.reference import load_reference, reference_features, reference_tokens
from tools.toy_model import scenes
from tools.toy_model.shapes import center

SIDE = 360  # of a scene; what it shows is too small in an image of six of them


@pytest.fixture(scope="module")
def six_scenes():
    """Return an image of three by two scenes, and the label and center of every shape and word in it."""
    image, truth = Image.new("RGB", (3 * SIDE, 2 * SIDE)), {"od": [], "ocr_with_region": []}
    for number in range(6):
        scene, corner = scenes.make_scene(number), (number % 3 * SIDE, number // 3 * SIDE)
        image.paste(scene.draw(SIDE), corner)
        for task, label, box in [
            *(("od", shape.kind, shape.box) for shape in scene.shapes),
            *(("ocr_with_region", word.text, word.box) for word in scene.words),
        ]:
            x, y = center(box)
            truth[task].append((label, corner[0] + SIDE * x, corner[1] + SIDE * y))
    return image, truth


def recall(objects, truth):
    found = [any(one.label == label and contains(one.box, x, y) for one in objects) for label, x, y in truth]
    return sum(found) / len(found)


def contains(box, x, y):
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


@pytest.mark.parametrize("task", ["od", "ocr_with_region"])
def test_tiles_find_what_the_whole_image_hides(server, six_scenes, task):
    """Tiles about as large as a scene show the model what it was trained on."""
    image, truth = six_scenes
    with Client(server.grpc_url) as client:
        whole = client.run(image, task, num_beams=1)
        tiled = client.run(image, task, num_beams=1, tiles=Tiles(SIDE, overlap=0.4))
    assert recall(tiled.objects, truth[task]) >= 0.7 > 0.5 >= recall(whole.objects, truth[task])


@pytest.fixture(scope="module")
def two_sizes(checkpoint, repository, tmp_path_factory):
    """Return a server that has the bundled checkpoint at its own size and, as `icons`, at 64 x 64 pixels."""
    both = shutil.copytree(repository, tmp_path_factory.mktemp("sizes") / "model_repository")
    command = [sys.executable, "-m", "export", checkpoint, "--repository", both, "--precision", "float32"]
    subprocess.run([*command, "--name", "icons", "--image-size", "64"], check=True)
    with embedded_server(both) as running:
        yield running


def test_crops_have_transformers_tokens_at_their_size(two_sizes, checkpoint):
    """Two exports of one checkpoint are on one server; the small one answers as transformers does at that size."""
    image = scenes.make_scene(3).draw(400)
    boxes = [(x, y, x + 64, y + 64) for x in range(0, 336, 64) for y in range(0, 336, 80)]
    with Client(two_sizes.grpc_url, "icons_ensemble") as icons, Client(two_sizes.grpc_url) as full:
        captions = icons.caption_regions(image, boxes, num_beams=1, max_new_tokens=20)
        assert full.detect(image, num_beams=1).labels
    small = read_checkpoint(str(checkpoint), image_size=64)
    reference = load_reference(small)
    features = reference_features(small, reference, [image.crop(box) for box in boxes])
    prompt = small.tokenizer.encode("<s>What does the image describe?</s>", add_special_tokens=False).ids
    options = small.config.generation_options(num_beams=1, max_new_tokens=20)
    for row, caption in zip(torch.from_numpy(features), captions, strict=True):
        tokens = reference_tokens(reference, small.config, row, prompt, options)
        text = small.tokenizer.decode(tokens, skip_special_tokens=False)
        assert caption.text == re.sub("</?s>|<pad>", "", text)
