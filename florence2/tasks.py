"""TASKS: the table of Florence-2's tasks. Prompts, parsers, command line and docs derive from it.

The prompts are those of transformers' `Florence2Processor` (`task_prompts_without_inputs`, `task_prompts_with_input`).
"""

from __future__ import annotations

import enum
import unicodedata
from dataclasses import dataclass


class TaskInput(enum.Enum):
    """The input of a task besides the image."""

    NONE = "none"
    TEXT = "text"
    REGION = "region"


class Grammar(enum.Enum):
    """The form of the generated text; the values are transformers' post-processing types."""

    TEXT = "pure_text"
    OCR = "ocr"
    LABELED_BOXES = "description_with_bboxes"
    BARE_BOXES = "bboxes"
    GROUNDING = "phrase_grounding"
    POLYGONS = "polygons"
    BOXES_OR_POLYGONS = "description_with_bboxes_or_polygons"


@dataclass(frozen=True)
class Task:
    """One row of the table. `prompt` contains `{input}` where the text or region of the request goes."""

    token: str
    summary: str
    prompt: str
    input: TaskInput
    grammar: Grammar

    @property
    def name(self) -> str:
        """Return the token in lower case without brackets, as on the command line: `od`."""
        return self.token.strip("<>").lower()


NONE, TEXT, REGION = TaskInput.NONE, TaskInput.TEXT, TaskInput.REGION

_ROWS = (
    Task("<CAPTION>", "one sentence about the image",
         "What does the image describe?", NONE, Grammar.TEXT),
    Task("<DETAILED_CAPTION>", "a few sentences about the image",
         "Describe in detail what is shown in the image.", NONE, Grammar.TEXT),
    Task("<MORE_DETAILED_CAPTION>", "a paragraph about the image",
         "Describe with a paragraph what is shown in the image.", NONE, Grammar.TEXT),
    Task("<OD>", "objects with their categories",
         "Locate the objects with category name in the image.", NONE, Grammar.LABELED_BOXES),
    Task("<DENSE_REGION_CAPTION>", "objects, each with a short description",
         "Locate the objects in the image, with their descriptions.", NONE, Grammar.LABELED_BOXES),
    Task("<REGION_PROPOSAL>", "boxes of everything that stands out, without labels",
         "Locate the region proposals in the image.", NONE, Grammar.BARE_BOXES),
    Task("<CAPTION_TO_PHRASE_GROUNDING>", "the phrases of a caption, each with its boxes",
         "Locate the phrases in the caption: {input}", TEXT, Grammar.GROUNDING),
    Task("<REFERRING_EXPRESSION_SEGMENTATION>", "the outline of what a phrase refers to",
         "Locate {input} in the image with mask", TEXT, Grammar.POLYGONS),
    Task("<REGION_TO_SEGMENTATION>", "the outline of the object in a region",
         "What is the polygon mask of region {input}", REGION, Grammar.POLYGONS),
    Task("<OPEN_VOCABULARY_DETECTION>", "all places that fit a phrase, as boxes or outlines",
         "Locate {input} in the image.", TEXT, Grammar.BOXES_OR_POLYGONS),
    Task("<REGION_TO_CATEGORY>", "the category of a region",
         "What is the region {input}?", REGION, Grammar.TEXT),
    Task("<REGION_TO_DESCRIPTION>", "a description of a region",
         "What does the region {input} describe?", REGION, Grammar.TEXT),
    Task("<REGION_TO_OCR>", "the text in a region",
         "What text is in the region {input}?", REGION, Grammar.TEXT),
    Task("<OCR>", "the text in the image",
         "What is the text in the image?", NONE, Grammar.TEXT),
    Task("<OCR_WITH_REGION>", "each line of text with its four corners",
         "What is the text in the image, with regions?", NONE, Grammar.OCR),
)  # fmt: skip
TASKS = {row.token: row for row in _ROWS}

OTHER_NAMES = {  # those of the client's methods, and what these tasks are usually called
    "detect": "<OD>",
    "detection": "<OD>",
    "object_detection": "<OD>",
    "propose_regions": "<REGION_PROPOSAL>",
    "ground": "<CAPTION_TO_PHRASE_GROUNDING>",
    "grounding": "<CAPTION_TO_PHRASE_GROUNDING>",
    "phrase_grounding": "<CAPTION_TO_PHRASE_GROUNDING>",
    "segment": "<REFERRING_EXPRESSION_SEGMENTATION>",
    "segmentation": "<REFERRING_EXPRESSION_SEGMENTATION>",
    "segment_region": "<REGION_TO_SEGMENTATION>",
    "find": "<OPEN_VOCABULARY_DETECTION>",
    "classify_region": "<REGION_TO_CATEGORY>",
    "describe_region": "<REGION_TO_DESCRIPTION>",
    "ocr_region": "<REGION_TO_OCR>",
}

# What phrase grounding drops. Native checkpoints keep the list in processor_config.json, Microsoft's in remote code.
BANNED_PHRASES = (
    "it", "I", "me", "mine", "you", "your", "yours", "he", "him", "his", "she", "her", "hers", "they", "them",
    "their", "theirs", "one", "oneself", "we", "us", "our", "ours", "its", "myself", "yourself", "himself",
    "herself", "itself", "ourselves", "yourselves", "themselves", "this", "that", "these", "those", "who", "whom",
    "whose", "which", "what", "all", "another", "any", "anybody", "anyone", "anything", "each", "everybody",  # sic
    "everyone", "everything", "few", "many", "nobody", "none", "several", "some", "somebody", "someone",  # sic
    "something", "each other", "one another", "the image", "image", "images", "the", "a", "an", "a group",
    "other objects", "lots", "a set",
)  # fmt: skip

SEPARATORS = ("Zs", "Cc", "Pd", "Pc")  # Unicode categories: spaces, line breaks, dashes and underscores


def letters_of(name: str) -> str:
    """Return what all spellings of a name share: no case, spaces, hyphens or underscores."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in plain if unicodedata.category(letter) not in SEPARATORS)


_BY_LETTERS = {letters_of(task.name): task for task in TASKS.values()}
_BY_OTHER_LETTERS = {letters_of(name): TASKS[token] for name, token in OTHER_NAMES.items()}


def task_from_name(name: str) -> Task | None:
    """Return the task of a token (`<OD>`) or of a name in any spelling (`od`, `region to OCR`, `detect`), or None.

    In brackets only the tasks' own names count: `<DETECT>` may be a token of a fine-tune.
    """
    letters = letters_of(name)
    known = _BY_LETTERS.get(letters.strip("<>"))
    return known or _BY_OTHER_LETTERS.get(letters)
