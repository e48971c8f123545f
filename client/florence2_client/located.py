"""Located: what results have in common that locate objects, with the conversions to other tools' formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from florence2_client.objects import Found, coco_dataset, supervision_detections, yolo_lines

if TYPE_CHECKING:
    import supervision


class Located(ABC):
    """Objects in an image. A Result has those of one answer, and Results those of several about the same image."""

    @abstractmethod
    def _located(self) -> tuple[list[Found], tuple[int, int]]:
        """Return the objects, and the image's (width, height)."""

    @property
    def labels(self) -> list[str]:
        """Return the label of each object, in order and with repetitions.

        >>> client.detect("scene.png").labels
        ['star', 'triangle']
        """
        return [found.label for found in self._located()[0]]

    def to_supervision(self) -> supervision.Detections:
        """Return the objects as `supervision.Detections`; needs the package supervision.

        >>> detections = client.detect("scene.png").to_supervision()
        >>> detections.data["class_name"].tolist(), detections.class_id.tolist()
        (['star', 'triangle'], [0, 1])
        """
        return supervision_detections(*self._located())

    def to_coco(self, file_name: str = "") -> dict[str, Any]:
        """Return a COCO detection data set of this one image, with a category per label.

        >>> coco = client.detect("scene.png").to_coco("scene.png")
        >>> [category["name"] for category in coco["categories"]], len(coco["annotations"])
        (['star', 'triangle'], 2)
        """
        objects, size = self._located()
        return coco_dataset(objects, file_name, size)

    def to_yolo(self, classes: Sequence[str]) -> list[str]:
        """Return the lines of a YOLO label file. Classes are numbered as in `classes`; other labels are left out.

        >>> len(client.detect("scene.png").to_yolo(["circle", "star"]))
        1
        """
        objects, size = self._located()
        return yolo_lines(objects, {label: index for index, label in enumerate(classes)}, size)
