"""The methods that Client and AsyncClient have in common: `run` and one method per task.

A subclass says what each kind of answer is returned as: a Result, or an awaitable of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from florence2_client.exchange import Question
from florence2_client.images import ImageLike
from florence2_client.request import Options, Phrases, Region, Regions, listed
from florence2_client.tasks import Prompted, prompts_of

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
TextsT = TypeVar("TextsT")  # Results of text answers, and so on
BoxesListT = TypeVar("BoxesListT")
PolygonsListT = TypeVar("PolygonsListT")
MixedListT = TypeVar("MixedListT")
AnyListT = TypeVar("AnyListT")


class TaskMethods(
    ABC,
    Generic[
        TextT, BoxesT, QuadsT, PolygonsT, MixedT, AnyT, TextsT, BoxesListT, PolygonsListT, MixedListT, AnyListT
    ],
):  # fmt: skip
    """One method per task.

    An image is a path, encoded bytes, a PIL image or a uint8 array. A region is (x1, y1, x2, y2) in pixels of the image
    as displayed, or location tokens. Every method takes the fields of `Options` by name and raises the errors of
    `florence2.errors`. Given a list of phrases or regions, a method sends a request for each, and returns `Results`.
    """

    @abstractmethod
    def _infer(self, image: ImageLike, task: str, text: Region | None, options: Options) -> Any:
        """Send one request, and return its Result."""

    @abstractmethod
    def _infer_all(self, image: ImageLike, prompts: Sequence[Prompted], options: Options) -> Any:
        """Send requests about one image together, and return their Results."""

    @abstractmethod
    def _infer_crops(self, image: ImageLike, boxes: Iterable[Region], task: str, options: Options) -> Any:
        """Send a request for each crop of an image, and return their Results."""

    def _infer_each(self, image: ImageLike, task: str, text: Any, options: Options) -> Any:
        texts = listed(text)
        if texts is None:
            return self._infer(image, task, text, options)
        return self._infer_all(image, [(task, one) for one in texts], options)

    def _answer(self, question: Question, options: Options) -> Any:
        return self._infer(question.image, question.task, question.text, {**options, **question.options})

    @overload
    def run(self, image: ImageLike, task: str, text: Region | None = None, **options: Unpack[Options]) -> AnyT: ...
    @overload
    def run(self, image: ImageLike, task: str, text: Regions, **options: Unpack[Options]) -> AnyListT: ...
    def run(self, image: ImageLike, task: str, text: Any = None, **options: Unpack[Options]) -> AnyT | AnyListT:
        """Run any task, by name in any spelling (`od`), by token (`<OD>`), or by a fine-tune's own prompt.

        `text` is the phrase, caption or region, for tasks that take one, or a list of them. `parse_task` says how a
        task is read: mark a prompt as `Prompt`, so that it is not taken for a misspelled name.

        >>> client.run("scene.png", "od", num_beams=1, timeout=30).labels
        ['star', 'triangle']
        """
        return self._infer_each(image, task, text, options)

    def ask(
        self, image: ImageLike, tasks: Iterable[str | Prompted], text: Region | Regions | None = None,
        **options: Unpack[Options],
    ) -> AnyListT:  # fmt: skip
        """Run several tasks on an image at once, and return their results in order, each with its own error.

        A task is a name, a token, a prompt, or a tuple of one of these and its text. `text` is for all tasks that take
        one; of a list, they get each. The image is read once, the requests are in flight together, and `timeout` is for
        all of them. A request that fails affects no other: `Results` says how its error is told.

        >>> caption, objects, star = client.ask("scene.png", ["caption", "od", ("find", "the purple star")])
        >>> caption.answer.text
        'a purple star and a green triangle with the text HELLO and TRITON'
        >>> objects.labels, star.labels
        (['star', 'triangle'], ['the purple star'])
        """
        texts = [] if text is None else [text] if (several := listed(text)) is None else several
        return self._infer_all(image, prompts_of([tasks] if isinstance(tasks, str) else tasks, texts), options)

    def caption(self, image: ImageLike, **options: Unpack[Options]) -> TextT:
        """Describe the image in one sentence. `<CAPTION>`

        >>> client.caption("scene.png").answer.text
        'a purple star and a green triangle with the text HELLO and TRITON'
        """
        return self._infer(image, "<CAPTION>", None, options)

    def detailed_caption(self, image: ImageLike, **options: Unpack[Options]) -> TextT:
        """Describe the image in a few sentences. `<DETAILED_CAPTION>`

        >>> client.detailed_caption("scene.png").answer.text[:46]
        'The image shows a large purple star in the mid'
        """
        return self._infer(image, "<DETAILED_CAPTION>", None, options)

    def more_detailed_caption(self, image: ImageLike, **options: Unpack[Options]) -> TextT:
        """Describe the image in a paragraph. `<MORE_DETAILED_CAPTION>`

        >>> client.more_detailed_caption("scene.png").answer.text[:33]
        'There are 2 shapes in the image. '
        """
        return self._infer(image, "<MORE_DETAILED_CAPTION>", None, options)

    def detect(self, image: ImageLike, **options: Unpack[Options]) -> BoxesT:
        """Find objects and their categories: `bboxes`, `labels`, `scores`. `<OD>`

        >>> client.detect("scene.png").answer.labels
        ['star', 'triangle']
        """
        return self._infer(image, "<OD>", None, options)

    def dense_region_caption(self, image: ImageLike, **options: Unpack[Options]) -> BoxesT:
        """Find objects and describe each one briefly. `<DENSE_REGION_CAPTION>`

        >>> client.dense_region_caption("scene.png").answer.labels
        ['large purple star', 'small green triangle']
        """
        return self._infer(image, "<DENSE_REGION_CAPTION>", None, options)

    def propose_regions(self, image: ImageLike, **options: Unpack[Options]) -> BoxesT:
        """Find boxes around everything that stands out; their labels are empty. `<REGION_PROPOSAL>`

        >>> len(client.propose_regions("scene.png").answer.bboxes)
        4
        """
        return self._infer(image, "<REGION_PROPOSAL>", None, options)

    @overload
    def ground(self, image: ImageLike, caption: str, **options: Unpack[Options]) -> BoxesT: ...
    @overload
    def ground(self, image: ImageLike, caption: Phrases, **options: Unpack[Options]) -> BoxesListT: ...
    def ground(self, image: ImageLike, caption: str | Phrases, **options: Unpack[Options]) -> BoxesT | BoxesListT:
        """Find the phrases of a caption in the image, each with its boxes. `<CAPTION_TO_PHRASE_GROUNDING>`

        >>> client.ground("scene.png", "a purple star and a green triangle").answer.labels
        ['a purple star', 'a green triangle']
        """
        return self._infer_each(image, "<CAPTION_TO_PHRASE_GROUNDING>", caption, options)

    @overload
    def find(self, image: ImageLike, phrase: str, **options: Unpack[Options]) -> MixedT: ...
    @overload
    def find(self, image: ImageLike, phrase: Phrases, **options: Unpack[Options]) -> MixedListT: ...
    def find(self, image: ImageLike, phrase: str | Phrases, **options: Unpack[Options]) -> MixedT | MixedListT:
        """Find everything that matches a phrase, as boxes or polygons. `<OPEN_VOCABULARY_DETECTION>`

        >>> client.find("scene.png", "the purple star").labels
        ['the purple star']
        >>> client.find("scene.png", ["the purple star", "the green triangle"]).labels
        ['the purple star', 'the green triangle']
        """
        return self._infer_each(image, "<OPEN_VOCABULARY_DETECTION>", phrase, options)

    @overload
    def segment(self, image: ImageLike, phrase: str, **options: Unpack[Options]) -> PolygonsT: ...
    @overload
    def segment(self, image: ImageLike, phrase: Phrases, **options: Unpack[Options]) -> PolygonsListT: ...
    def segment(self, image: ImageLike, phrase: str | Phrases, **options: Unpack[Options]) -> PolygonsT | PolygonsListT:
        """Outline what a phrase refers to, in one or more polygons. `<REFERRING_EXPRESSION_SEGMENTATION>`

        >>> len(client.segment("scene.png", "the purple star").answer.polygons)
        1
        """
        return self._infer_each(image, "<REFERRING_EXPRESSION_SEGMENTATION>", phrase, options)

    @overload
    def segment_region(self, image: ImageLike, region: Region, **options: Unpack[Options]) -> PolygonsT: ...
    @overload
    def segment_region(self, image: ImageLike, region: Regions, **options: Unpack[Options]) -> PolygonsListT: ...
    def segment_region(
        self, image: ImageLike, region: Region | Regions, **options: Unpack[Options]
    ) -> PolygonsT | PolygonsListT:
        """Outline the object in a region. `<REGION_TO_SEGMENTATION>`

        >>> len(client.segment_region("scene.png", (60, 175, 295, 455)).answer.polygons)
        1
        """
        return self._infer_each(image, "<REGION_TO_SEGMENTATION>", region, options)

    @overload
    def classify_region(self, image: ImageLike, region: Region, **options: Unpack[Options]) -> TextT: ...
    @overload
    def classify_region(self, image: ImageLike, region: Regions, **options: Unpack[Options]) -> TextsT: ...
    def classify_region(self, image: ImageLike, region: Region | Regions, **options: Unpack[Options]) -> TextT | TextsT:
        """Classify a region; the region follows in the text as location tokens. `<REGION_TO_CATEGORY>`

        >>> client.classify_region("scene.png", (60, 175, 295, 455)).labels
        ['star']
        >>> boxes = client.detect("scene.png").answer.bboxes
        >>> client.classify_region("scene.png", boxes).labels
        ['star', 'triangle']
        """
        return self._infer_each(image, "<REGION_TO_CATEGORY>", region, options)

    @overload
    def describe_region(self, image: ImageLike, region: Region, **options: Unpack[Options]) -> TextT: ...
    @overload
    def describe_region(self, image: ImageLike, region: Regions, **options: Unpack[Options]) -> TextsT: ...
    def describe_region(self, image: ImageLike, region: Region | Regions, **options: Unpack[Options]) -> TextT | TextsT:
        """Describe a region; the region follows in the text as location tokens. `<REGION_TO_DESCRIPTION>`

        >>> client.describe_region("scene.png", (60, 175, 295, 455)).labels
        ['large purple star']
        """
        return self._infer_each(image, "<REGION_TO_DESCRIPTION>", region, options)

    @overload
    def ocr_region(self, image: ImageLike, region: Region, **options: Unpack[Options]) -> TextT: ...
    @overload
    def ocr_region(self, image: ImageLike, region: Regions, **options: Unpack[Options]) -> TextsT: ...
    def ocr_region(self, image: ImageLike, region: Region | Regions, **options: Unpack[Options]) -> TextT | TextsT:
        """Read the text in a region. `<REGION_TO_OCR>`

        >>> client.ocr_region("scene.png", (345, 65, 570, 120)).labels
        ['HELLO']
        """
        return self._infer_each(image, "<REGION_TO_OCR>", region, options)

    def caption_regions(
        self, image: ImageLike, boxes: Iterable[Region], task: str = "caption", **options: Unpack[Options]
    ) -> TextsT:
        """Crop each box (x1, y1, x2, y2) out of the image, and run a task that takes no text on every crop.

        Boxes are in pixels of the image as displayed, and clamped to it. The requests are in flight together; results
        are in the order of the boxes, each with its own error, and know nothing of the image around the crop. For small
        crops in large numbers, such as icons, export a model of their size: `florence2 export --image-size 64`.

        >>> star, text = client.caption_regions("scene.png", [(60, 175, 295, 455), (345, 65, 570, 120)], "caption")
        >>> star.image_size, text.image_size
        ((235, 280), (225, 55))
        """
        return self._infer_crops(image, boxes, task, options)

    def ocr(self, image: ImageLike, **options: Unpack[Options]) -> TextT:
        """Read the text in the image. `<OCR>`

        >>> client.ocr("scene.png").answer.text
        'HELLO TRITON'
        """
        return self._infer(image, "<OCR>", None, options)

    def ocr_with_region(self, image: ImageLike, **options: Unpack[Options]) -> QuadsT:
        """Read each line of text, with its four corners: `quad_boxes`, `labels`. `<OCR_WITH_REGION>`

        >>> client.ocr_with_region("scene.png").answer.labels
        ['HELLO', 'TRITON']
        """
        return self._infer(image, "<OCR_WITH_REGION>", None, options)
