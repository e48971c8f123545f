"""Judge a model's answers to labeled images, as calibration and its benchmark need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from florence2.errors import InvalidRequest
from florence2_client.client import Client
from florence2_client.labeled import LabeledImage, confirmed


@dataclass
class Judged:
    """The objects of all answers: what the model said of each, and whether it is right; and how many there are."""

    confidences: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    labeled: int = 0


def judge(client: Client, images: Sequence[LabeledImage], task: str, concurrency: int) -> Judged:
    """Return the objects that the task finds in the images. Raise the error of a request that fails.

    Raise InvalidRequest if the server's answers have no confidences.
    """
    asked = [(image, question) for image in images for question in image.questions(task)]
    replies = client.run_many((question for _, question in asked), concurrency=concurrency)
    judged = Judged()
    for (image, question), reply in zip(asked, replies, strict=True):
        found = reply.unwrap().objects
        if isinstance(question.text, str):  # which is what its objects are, whatever the model calls them
            found = [replace(one, label=question.text) for one in found]
        if any(one.confidence is None for one in found):
            raise InvalidRequest("the server's answers have no confidences; export its repository again")
        labels = image.labels_for(question)
        judged.correct += confirmed(found, labels)
        judged.confidences += [one.confidence or 0.0 for one in found]
        judged.scores += [one.score or 0.0 for one in found]
        judged.labels += [one.label for one in found]
        judged.labeled += len(labels)
    return judged
