"""A transport of the tests that finds things in images as it is told."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from florence2.errors import Florence2Error, InvalidImage
from tests.unit.client.fake_transport import outputs
from tests.unit.client.in_flight import CountingTransport

NO_BOXES = {"bboxes": [], "labels": [], "confidences": []}
NOTHING = {
    "<OPEN_VOCABULARY_DETECTION>": {
        "bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": [],
        "confidences": [], "polygons_confidences": [],
    },
    "<REFERRING_EXPRESSION_SEGMENTATION>": {"polygons": [], "labels": [], "confidences": []},
    "<OCR_WITH_REGION>": {"quad_boxes": [], "labels": [], "confidences": []},
}  # fmt: skip


def boxes(*found):
    """Return the answer of <OD>, from tuples of label, box, confidence."""
    labels, corners, confidences = zip(*found, strict=True)
    return {"bboxes": list(corners), "labels": list(labels), "confidences": list(confidences)}


def places(*found):
    """Return the answer of open-vocabulary detection, from tuples of box, confidence."""
    return NOTHING["<OPEN_VOCABULARY_DETECTION>"] | {
        "bboxes": [box for box, _ in found],
        "bboxes_labels": ["?"] * len(found),
        "confidences": [confidence for _, confidence in found],
    }


def outlines(*found):
    """Return the answer of segmentation, from tuples of polygons, confidence."""
    polygons, confidences = zip(*found, strict=True)
    return {"polygons": list(polygons), "labels": [""] * len(found), "confidences": list(confidences)}


class Finder(CountingTransport):
    """Answers each task and text with what `answers` has, and with nothing found otherwise.

    A key is `od`, or `open_vocabulary_detection: a star`; a value is the answer's JSON, or an error. A damaged image
    fails as on the server. Texts have a confidence of 0.8.
    """

    def __init__(self, answers):
        super().__init__()
        self.answers, self.asked = answers, []

    def answer(self, tensors, timeout):
        task = tensors["TASK"][0].decode()
        text = tensors["TEXT"][0].decode() if "TEXT" in tensors else None
        name = task.strip("<>").lower()
        self.asked.append((name, text))
        try:
            size = Image.open(io.BytesIO(tensors["IMAGE"][0])).size
        except OSError as error:
            raise InvalidImage("the image is damaged") from error
        found = self.answers.get(
            f"{name}: {text}" if text else name, NOTHING.get(task, {"bboxes": [], "labels": [], "confidences": []})
        )
        if isinstance(found, Florence2Error):
            raise found
        log_probs = [["a", float(np.log(0.8))]] if isinstance(found, str) else []
        return outputs(
            task,
            found,
            IMAGE_SIZE=np.array(size, dtype=np.int32),
            TOKEN_LOG_PROBS=np.array([json.dumps(log_probs).encode()], dtype=object),
            NUM_PROMPT_TOKENS=np.array([9], dtype=np.int32),
        )
