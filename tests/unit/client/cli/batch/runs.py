"""Run `florence2 batch` against a fake server, and read what it wrote."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np

from florence2.errors import InvalidImage
from florence2_client import cli
from tests.unit.client.fake_transport import outputs

ANSWERS = {
    "<CAPTION>": "a dog, sleeping",
    "<OD>": {"bboxes": [[10, 20, 30, 40]], "labels": ["dog"], "scores": [0.1], "confidences": [0.5]},
    "<DENSE_REGION_CAPTION>": {"bboxes": [[10, 20, 30, 41]], "labels": ["a dog"], "scores": [0.5]},
    "<REGION_PROPOSAL>": {"bboxes": [[11, 20, 30, 40]], "labels": [""], "scores": [0.5]},
    "<REFERRING_EXPRESSION_SEGMENTATION>": {"polygons": [[[0, 0, 10, 0, 10, 10]]], "labels": [""]},
    "<REGION_TO_SEGMENTATION>": {"polygons": [[[0, 0, 10, 0, 10, 10]]], "labels": [""]},
    "<OPEN_VOCABULARY_DETECTION>": {"bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": []},
    "<DocVQA>What?": "42",
}


class FakeServer:
    """Answer by task. `fail` may raise by the count of requests so far; an image that begins with `bad` is damaged."""

    def __init__(self):
        self.asked, self.fail, self.reads_all = [], lambda count: None, False

    async def infer(self, model, tensors, timeout):
        await asyncio.sleep(0)
        self.asked.append({name: tensor[0] for name, tensor in tensors.items()})
        if tensors["IMAGE"][0].startswith(b"bad") and not self.reads_all:
            raise InvalidImage("the image is damaged")
        self.fail(len(self.asked))
        task = tensors["TASK"][0].decode()
        return outputs(task, ANSWERS[task], IMAGE_SIZE=np.array([40, 50], dtype=np.int32))

    async def close(self):
        pass

    def images_asked(self):
        """Return the requests without the probes, whose image has 64 x 64 pixels."""
        return [asked for asked in self.asked if b"\x00\x00\x00\x40\x00\x00\x00\x40" not in asked["IMAGE"][:32]]


def batch(*arguments, sources=("images",), out="out.jsonl"):
    """Run the command, and return its exit code."""
    return cli.main(["batch", *sources, "--out", out, "--retry-for", "0", *arguments])


def lines(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def keys():
    return sorted((line["image"], line["task"]) for line in lines())


ALL = [(f"images/{number}.png", task) for number in range(5) for task in ("<CAPTION>", "<OD>")]
