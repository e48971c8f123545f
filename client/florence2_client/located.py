"""Located: what results have in common that locate objects, with the conversions to other tools' formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from florence2_client.masks import Mask, mask_of, masks_of, rle_of
from florence2_client.objects import Found, coco_dataset, numbered, supervision_detections, yolo_lines

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

    def to_masks(self) -> Mask:
        """Return the objects' masks, bool [n, height, width], with a mask per object and in the order of `labels`.

        An outline or a line of text covers its inside, and a box all of it. The union of an object's polygons is its
        mask. Pixels are those that pycocotools chooses. Masks of a large image take much memory: a byte per pixel and
        object. `iter_masks` needs that of one, and `to_rle` next to none.

        >>> client.segment("scene.png", "the purple star").to_masks().shape
        (1, 768, 768)
        """
        return masks_of(*self._located())

    def iter_masks(self) -> Iterator[Mask]:
        """Yield the masks of `to_masks`, bool [height, width], one at a time.

        >>> result = client.segment("scene.png", ["the purple star", "the green triangle"])
        >>> star, triangle = (int(mask.sum()) for mask in result.iter_masks())
        >>> star > triangle > 1000
        True
        """
        objects, size = self._located()
        return (mask_of(found, size) for found in objects)

    def to_rle(self) -> list[dict[str, Any]]:
        """Return the masks of `to_masks` in COCO's compressed run-length encoding, as pycocotools takes them.

        >>> client.segment("scene.png", "the purple star").to_rle()[0]["size"]
        [768, 768]
        """
        objects, size = self._located()
        return [rle_of(found, size) for found in objects]

    def to_supervision(self) -> supervision.Detections:
        """Return the objects as `supervision.Detections`; needs the package supervision.

        >>> detections = client.detect("scene.png").to_supervision()
        >>> detections.data["class_name"].tolist(), detections.class_id.tolist()
        (['star', 'triangle'], [0, 1])
        """
        return supervision_detections(*self._located())

    def to_coco(self, file_name: str = "", *, rle: bool = False) -> dict[str, Any]:
        """Return a COCO detection data set of this one image, with a category per label.

        Outlines are polygons. With `rle`, the segmentation of every object is its mask, run-length encoded.

        >>> coco = client.detect("scene.png").to_coco("scene.png")
        >>> [category["name"] for category in coco["categories"]], len(coco["annotations"])
        (['star', 'triangle'], 2)
        """
        objects, size = self._located()
        categories = numbered((found.label for found in objects), first=1)
        return coco_dataset([(file_name, size, objects)], categories, rle=rle)

    def to_yolo(self, classes: Sequence[str]) -> list[str]:
        """Return the lines of a YOLO label file. Classes are numbered as in `classes`; other labels are left out.

        >>> len(client.detect("scene.png").to_yolo(["circle", "star"]))
        1
        """
        objects, size = self._located()
        return yolo_lines(objects, {label: index for index, label in enumerate(classes)}, size)
