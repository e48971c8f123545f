"""Surface: what Client and AsyncClient have in common, `run` and a method per task.

A subclass fills in what each kind of answer comes as: a Result, or an awaitable of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from florence2_client.images import Picture
from florence2_client.many import Question
from florence2_client.request import Options, Region

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_MODEL = "florence2_ensemble"
DEFAULT_RETRY_SECONDS = 5.0

TextT = TypeVar("TextT")
BoxesT = TypeVar("BoxesT")
QuadsT = TypeVar("QuadsT")
PolygonsT = TypeVar("PolygonsT")
MixedT = TypeVar("MixedT")
AnyT = TypeVar("AnyT")


class Surface(ABC, Generic[TextT, BoxesT, QuadsT, PolygonsT, MixedT, AnyT]):
    """A picture is a path, encoded bytes, a PIL image or a uint8 array. A region is (x1, y1, x2, y2) in pixels of the
    picture as displayed, or location tokens. Every method takes the fields of `Options` by name and raises the errors
    of `florence2.errors`.
    """

    @abstractmethod
    def _ask(self, image: Picture, task: str, text: Region | None, options: Options) -> Any: ...

    def _asked(self, question: Question, options: Options) -> Any:
        return self._ask(question.image, question.task, question.text, {**options, **question.options})

    def run(self, image: Picture, task: str, text: Region | None = None, **options: Unpack[Options]) -> AnyT:
        """Any task by name (`od`) or token (`<OD>`), or a fine-tune's own prompt. `text` is the phrase, caption or
        region of tasks that take one.

        >>> client.run("scene.png", "od", num_beams=1, timeout=30).labels
        ['star', 'triangle']
        """
        return self._ask(image, task, text, options)

    def caption(self, image: Picture, **options: Unpack[Options]) -> TextT:
        """One sentence about the picture. `<CAPTION>`

        >>> client.caption("scene.png").answer.text
        'a purple star and a green triangle with the text HELLO and TRITON'
        """
        return self._ask(image, "<CAPTION>", None, options)

    def detailed_caption(self, image: Picture, **options: Unpack[Options]) -> TextT:
        """A few sentences about the picture. `<DETAILED_CAPTION>`

        >>> client.detailed_caption("scene.png").answer.text[:46]
        'The image shows a large purple star in the mid'
        """
        return self._ask(image, "<DETAILED_CAPTION>", None, options)

    def more_detailed_caption(self, image: Picture, **options: Unpack[Options]) -> TextT:
        """A paragraph about the picture. `<MORE_DETAILED_CAPTION>`

        >>> client.more_detailed_caption("scene.png").answer.text[:33]
        'There are 2 shapes in the image. '
        """
        return self._ask(image, "<MORE_DETAILED_CAPTION>", None, options)

    def detect(self, image: Picture, **options: Unpack[Options]) -> BoxesT:
        """Objects with their categories: `bboxes`, `labels`, `scores`. `<OD>`

        >>> client.detect("scene.png").answer.labels
        ['star', 'triangle']
        """
        return self._ask(image, "<OD>", None, options)

    def dense_region_caption(self, image: Picture, **options: Unpack[Options]) -> BoxesT:
        """Objects with a short description each. `<DENSE_REGION_CAPTION>`

        >>> client.dense_region_caption("scene.png").answer.labels
        ['large purple star', 'small green triangle']
        """
        return self._ask(image, "<DENSE_REGION_CAPTION>", None, options)

    def propose_regions(self, image: Picture, **options: Unpack[Options]) -> BoxesT:
        """Boxes of whatever stands out; their labels are empty. `<REGION_PROPOSAL>`

        >>> len(client.propose_regions("scene.png").answer.bboxes)
        4
        """
        return self._ask(image, "<REGION_PROPOSAL>", None, options)

    def ground(self, image: Picture, caption: str, **options: Unpack[Options]) -> BoxesT:
        """The phrases of a caption, each with its boxes. `<CAPTION_TO_PHRASE_GROUNDING>`

        >>> client.ground("scene.png", "a purple star and a green triangle").answer.labels
        ['a purple star', 'a green triangle']
        """
        return self._ask(image, "<CAPTION_TO_PHRASE_GROUNDING>", caption, options)

    def find(self, image: Picture, phrase: str, **options: Unpack[Options]) -> MixedT:
        """All places that fit a phrase, as boxes or outlines. `<OPEN_VOCABULARY_DETECTION>`

        >>> client.find("scene.png", "the purple star").labels
        ['the purple star']
        """
        return self._ask(image, "<OPEN_VOCABULARY_DETECTION>", phrase, options)

    def segment(self, image: Picture, phrase: str, **options: Unpack[Options]) -> PolygonsT:
        """The outline of what a phrase refers to, which may be several polygons. `<REFERRING_EXPRESSION_SEGMENTATION>`

        >>> len(client.segment("scene.png", "the purple star").answer.polygons)
        1
        """
        return self._ask(image, "<REFERRING_EXPRESSION_SEGMENTATION>", phrase, options)

    def segment_region(self, image: Picture, region: Region, **options: Unpack[Options]) -> PolygonsT:
        """The outline of the object in a region. `<REGION_TO_SEGMENTATION>`

        >>> len(client.segment_region("scene.png", (60, 175, 295, 455)).answer.polygons)
        1
        """
        return self._ask(image, "<REGION_TO_SEGMENTATION>", region, options)

    def classify_region(self, image: Picture, region: Region, **options: Unpack[Options]) -> TextT:
        """The category of a region; the region follows in the text, as location tokens. `<REGION_TO_CATEGORY>`

        >>> client.classify_region("scene.png", (60, 175, 295, 455)).labels
        ['star']
        """
        return self._ask(image, "<REGION_TO_CATEGORY>", region, options)

    def describe_region(self, image: Picture, region: Region, **options: Unpack[Options]) -> TextT:
        """A description of a region; the region follows in the text, as location tokens. `<REGION_TO_DESCRIPTION>`

        >>> client.describe_region("scene.png", (60, 175, 295, 455)).labels
        ['large purple star']
        """
        return self._ask(image, "<REGION_TO_DESCRIPTION>", region, options)

    def ocr_region(self, image: Picture, region: Region, **options: Unpack[Options]) -> TextT:
        """The text in a region. `<REGION_TO_OCR>`

        >>> client.ocr_region("scene.png", (345, 65, 570, 120)).labels
        ['HELLO']
        """
        return self._ask(image, "<REGION_TO_OCR>", region, options)

    def ocr(self, image: Picture, **options: Unpack[Options]) -> TextT:
        """The text in the picture. `<OCR>`

        >>> client.ocr("scene.png").answer.text
        'HELLO TRITON'
        """
        return self._ask(image, "<OCR>", None, options)

    def ocr_with_region(self, image: Picture, **options: Unpack[Options]) -> QuadsT:
        """Each line of text with its four corners: `quad_boxes`, `labels`. `<OCR_WITH_REGION>`

        >>> client.ocr_with_region("scene.png").answer.labels
        ['HELLO', 'TRITON']
        """
        return self._ask(image, "<OCR_WITH_REGION>", None, options)
