"""A transport that answers by task, in place of a server."""

from __future__ import annotations

import numpy as np

from tests.unit.client.fake_transport import outputs

ANSWERS = {
    "<OD>": {"bboxes": [[1.2, 2.0, 33.7, 24.0], [5, 6, 7, 8]], "labels": ["dog", "中文"], "confidences": [0.987, 0.5]},
    "<CAPTION>": "a café",
    "<OCR_WITH_REGION>": {"quad_boxes": [[1, 2, 30, 2, 30, 9, 1, 9]], "labels": ["EXIT"], "confidences": [0.25]},
    "<REGION_TO_SEGMENTATION>": {"polygons": [[[1, 2, 30, 2, 30, 9], [4, 4, 5, 5]]], "labels": [""]},
    "<OPEN_VOCABULARY_DETECTION>": {
        "bboxes": [[1, 2, 3, 4]],
        "bboxes_labels": ["cat"],
        "polygons": [[[1, 2, 30, 2, 30, 9]]],
        "polygons_labels": ["hat"],
    },
    "<REGION_PROPOSAL>": {"bboxes": [], "labels": []},
    "<DocVQA>What?": "42",
    "<REGION_TO_CATEGORY>": "dog<loc_0><loc_100><loc_500><loc_999>",
}


class FakeServer:
    """Answer by task, or raise `failure`."""

    def __init__(self):
        self.failure = None
        self.finish_reason = b"stop"
        self.urls, self.addresses, self.asked = [], [], []

    def open(self, url):
        self.urls.append(str(url))
        self.addresses.append(url)
        return self

    def infer(self, model, tensors, timeout):
        self.asked.append((model, {name: tensor[0] for name, tensor in tensors.items()}, timeout))
        if self.failure:
            raise self.failure
        task = tensors["TASK"][0].decode()
        return outputs(
            task,
            ANSWERS[task],
            FINISH_REASON=np.array([self.finish_reason], dtype=object),
            IMAGE_SIZE=np.array([40, 30], dtype=np.int32),
        )

    def close(self):
        pass
