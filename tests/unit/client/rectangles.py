"""A transport that finds colored rectangles in the pixels that it gets."""

from __future__ import annotations

import asyncio
import json

import numpy as np

from florence2.config import ImageConfig
from florence2.images import decode_image
from tests.unit.client.in_flight import CountingTransport

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


class Finder(CountingTransport):
    """Answers with the box of each color, as far as the image shows it; 768 pixels of a side are all it sees."""

    def __init__(self, fails=lambda size: None):
        super().__init__()
        self.fails, self.sizes, self.tasks, self.timeouts = fails, [], [], []
        self.descriptions, self.described = [{}], []

    def describe(self, model, timeout):
        """Tell the next description, or raise it; the last one again and again."""
        self.described.append((model, timeout))
        told = self.descriptions[0] if len(self.descriptions) == 1 else self.descriptions.pop(0)
        if isinstance(told, Exception):
            raise told
        return told

    def answer(self, tensors, timeout):
        image = decode_image(tensors["IMAGE"][0], ImageConfig.max_pixels)
        if error := self.fails(image.size):
            raise error
        task = tensors["TASK"][0].decode()
        with self.lock:
            self.sizes.append(image.size)
            self.tasks.append(task)
            self.timeouts.append(timeout)
        pixels = np.asarray(image)
        boxes, labels = [], []
        for name, color in COLORS.items():
            ys, xs = np.nonzero((pixels == color).all(-1))
            if len(xs) and max(np.ptp(xs), np.ptp(ys)) >= max(image.size) / 768 * 4:
                boxes.append([float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)])
                labels.append(name)
        if task == "<OCR_WITH_REGION>":
            quads = [[x1, y1, x2, y1, x2, y2, x1, y2] for x1, y1, x2, y2 in boxes]
            answer = {"quad_boxes": quads, "labels": labels}
        elif task.startswith("<OPEN"):
            answer = {"bboxes": boxes, "bboxes_labels": labels, "polygons": [], "polygons_labels": []}
        else:
            answer = {"bboxes": boxes, "labels": labels, "scores": [0.25] * len(boxes)}
        return {
            "RESULT": np.array([json.dumps({task: answer}).encode()], object),
            "GENERATED_TEXT": np.array([b""], object),
            "FINISH_REASON": np.array([b"stop"], object),
            "NUM_TOKENS": np.array([5], np.int32),
            "SEQUENCE_SCORE": np.array([-0.5], np.float32),
            "IMAGE_SIZE": np.array(image.size, np.int32),
        }


class AsyncFinder(Finder):
    async def describe(self, model, timeout):
        return super().describe(model, timeout)

    async def infer(self, model, tensors, timeout):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return self.answer(tensors, timeout)

    async def close(self):
        pass
