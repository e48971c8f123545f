"""Labeling configurations, answers and drawn regions for the tests of Label Studio's protocol."""

from __future__ import annotations

IMAGE = '<Image name="image" value="$image"/>'
BOXES = '<RectangleLabels name="label" toName="image"><Label value="Star"/><Label value="Car"/></RectangleLabels>'
OCR = (
    '<Labels name="label" toName="image"><Label value="Text"/><Label value="Handwriting"/></Labels>'
    '<Rectangle name="bbox" toName="image"/><Polygon name="poly" toName="image"/>'
    '<TextArea name="transcription" toName="image" perRegion="true" editable="true"/>'
)
OUTLINES = '<PolygonLabels name="label" toName="image"><Label value="star"/></PolygonLabels>'
FIND, OUTLINE, READ = "<OPEN_VOCABULARY_DETECTION>", "<REFERRING_EXPRESSION_SEGMENTATION>", "<OCR_WITH_REGION>"
NOTHING = {"bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": []}
LEVEL, TILTED, SKEWED = (
    [10, 10, 60, 10, 60, 20, 10, 20],
    [50, 20, 90, 50, 78, 66, 38, 36],
    [0, 0, 90, 40, 99, 90, 5, 50],
)


def view(*controls):
    return f"<View>{IMAGE}{''.join(controls)}</View>"


def found(*boxes, label="x", confidence=0.75):
    """Return an answer of open-vocabulary detection."""
    return {
        "bboxes": list(boxes), "bboxes_labels": [label] * len(boxes), "polygons": [], "polygons_labels": [],
        "scores": [0.5] * len(boxes), "confidences": [confidence] * len(boxes), "polygons_confidences": [],
    }  # fmt: skip


def outlined(*polygons):
    return {"polygons": [list(polygons)], "labels": [""], "confidences": [0.5]}


def lines(*quads):
    return {"quad_boxes": list(quads), "labels": ["HELLO"] * len(quads), "confidences": [0.9] * len(quads)}


CHOICES = (
    '<Choices name="kind" toName="image"><Choice value="star"/><Choice value="car"/><Choice value="dog"/></Choices>'
)


def results(answer):
    [prediction] = answer["results"]
    return prediction["result"]


def drawn(kind="rectanglelabels", labels=("Star",), from_name="label", **value):
    value = value or {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 0}
    given = {kind: list(labels)} if labels else {}
    return {"result": [{"id": "r1", "type": kind, "from_name": from_name, "to_name": "image", "original_width": 200,
                        "original_height": 100, "image_rotation": 0, "value": {**value, **given}}]}  # fmt: skip
