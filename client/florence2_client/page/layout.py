"""The page: what is on it, and what follows from what."""

from __future__ import annotations

import html
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import gradio as gr
from gradio.components import Component
from gradio.data_classes import ImageData

from florence2.tasks import TASKS, TaskInput
from florence2_client.client import Client
from florence2_client.page.asking import Card, ask, takes
from florence2_client.page.region import region_picker
from florence2_client.request import Options

MOST_SIDE_BY_SIDE = 4
EXAMPLE = str(Path(__file__).with_name("example.jpg"))
EXAMPLES = {  # label -> task, tasks beside it, text, region
    "Find objects": ("od", [], "", ""),
    "Describe": ("more_detailed_caption", [], "", ""),
    "Find what a phrase says": ("caption_to_phrase_grounding", [], "a yellow star and a green circle", ""),
    "Outline what is in a box": ("region_to_segmentation", [], "", "278,88,480,306"),
    "Read": ("ocr_with_region", [], "", ""),
    "Four tasks side by side": ("caption", ["dense_region_caption", "ocr", "region_to_category"], "", "32,35,255,252"),
}
CSS = """
.error { border-left: 4px solid var(--error-icon-color); padding-left: 0.75em; }
#task input { text-overflow: ellipsis; padding-right: 2em; }
"""
# On a phone the answers are below the form.
SCROLL_TO_ANSWERS = """() => {
  const first = document.querySelector("#answer-0");
  if (first?.getBoundingClientRect().top > innerHeight / 2) first.scrollIntoView({ behavior: "smooth" });
}"""

Updates: TypeAlias = "dict[Any, Any]"


def _path(_picture: gr.Image, payload: ImageData | None) -> str | None:
    return payload.path if payload else None


# Hands the file on as it came: the server says what is wrong with it, where Gradio would fail without a word.
# Made past Gradio's metaclass, which writes a .pyi beside every module that defines a component.
PictureFile: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image), "PictureFile", (gr.Image,), {"is_template": True, "preprocess": _path}
)


class Form:
    """What is asked: picture, tasks, text, region and options."""

    def __init__(self) -> None:
        self.picture = PictureFile(label="Picture", height=360, buttons=[], elem_id="picture")
        self.picker = region_picker(elem_id="picker")
        self.another = gr.Button("Another picture", size="sm", visible="hidden", elem_id="another")
        self.task = gr.Dropdown(
            [(f"{task.name} · {task.summary}", task.name) for task in TASKS.values()], value="od",
            label="Task", info="of the list, or a fine-tune's own prompt", allow_custom_value=True, elem_id="task",
        )  # fmt: skip
        self.beside = gr.Dropdown(
            [task.name for task in TASKS.values()], value=[], multiselect=True, max_choices=MOST_SIDE_BY_SIDE - 1,
            label="Compare with", info="answered side by side about the same picture", elem_id="beside",
        )  # fmt: skip
        self.text = gr.Textbox(label="Phrase or caption", visible="hidden", elem_id="text")
        self.region = gr.Textbox(
            label="Box", placeholder="x1,y1,x2,y2 in pixels, or draw it", visible="hidden", elem_id="region"
        )
        with gr.Accordion("Options", open=False):
            checkpoints = "empty: as the checkpoint has it"
            self.beams = gr.Number(None, label="Beams", precision=0, minimum=1, info=checkpoints)
            self.tokens = gr.Number(None, label="Most tokens", precision=0, minimum=1, info=checkpoints)

    @property
    def inputs(self) -> list[Component]:
        return [self.picture, self.task, self.beside, self.text, self.region, self.beams, self.tokens]

    def follow(self) -> None:
        """What changes with the tasks and the picture: for a region, the picture becomes one to draw on."""
        arranged: dict[str, Any] = {
            "fn": self._arrange,
            "inputs": [self.picture, self.task, self.beside],
            "outputs": [self.picture, self.picker, self.another, self.text, self.region],
            "show_progress": "hidden",
        }
        gr.on([self.task.change, self.beside.change, self.picture.change], **arranged)
        self.picker.input(None, self.picker, self.region, js="region => region")
        self.region.change(None, self.region, self.picker, js="region => region")
        self.picture.input(None, None, self.region, js="() => ''")
        self.another.click(None, None, [self.picture, self.region], js="() => [null, '']")

    def _arrange(self, picture: str | None, task: str | None, beside: Sequence[str]) -> Updates:
        tasks = all_tasks(task, beside)
        region = takes(tasks, TaskInput.REGION)
        drawing = region and bool(picture)
        return {
            self.picture: gr.update(visible=_shown(not drawing)),
            self.picker: gr.update(visible=_shown(drawing), picture=_address(picture)),
            self.another: gr.update(visible=_shown(drawing)),
            self.text: gr.update(visible=_shown(takes(tasks, TaskInput.TEXT))),
            self.region: gr.update(visible=_shown(region)),
        }


class Slot:
    """The place of one answer."""

    def __init__(self, place: int) -> None:
        with gr.Column(visible=False, min_width=280, elem_classes="card", elem_id=f"answer-{place}") as self.column:
            self.summary = gr.HTML()
            self.overlay = gr.Image(
                show_label=False, format="jpeg", interactive=False, buttons=["download", "fullscreen"]
            )
            self.words = gr.Textbox(label="Text", lines=1, max_lines=12, interactive=False, buttons=["copy"])
            with gr.Accordion("JSON", open=False) as self.fold:
                self.details = gr.JSON(show_label=False)

    @property
    def outputs(self) -> list[Any]:
        return [self.column, self.summary, self.overlay, self.words, self.fold, self.details]

    def empty(self) -> Updates:
        return {self.column: gr.update(visible=False)}

    def waiting(self, task: str) -> Updates:
        return self.show(Card(task, timing="asked …"))

    def show(self, card: Card) -> Updates:
        return {
            self.column: gr.update(visible=True),
            self.summary: _summary(card),
            self.overlay: gr.update(value=card.overlay, visible=card.overlay is not None),
            self.words: gr.update(value=card.words, visible=card.words is not None),
            self.fold: gr.update(visible=card.details is not None),
            self.details: card.details,
        }


def _summary(card: Card) -> str:
    told = f'<p class="error" role="alert">{html.escape(card.error)}</p>' if card.error else f"<p>{card.timing}</p>"
    return f"<h3>{html.escape(card.task)}</h3>{told}"


def _address(picture: str | None) -> str:
    """Where the browser gets the file, relative to the page, which may lie behind a proxy."""
    return f"gradio_api/file={quote(picture)}" if picture else ""


def _shown(shown: bool) -> Literal[True, "hidden"]:
    """Hidden components keep what was filled in; Gradio's invisible ones are taken off the page."""
    return True if shown else "hidden"


def all_tasks(task: str | None, beside: Sequence[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(filter(None, [(task or "").strip(), *beside])))


def make_page(client: Client, url: str, timeout: float) -> gr.Blocks:
    """The page that asks the client's server, `timeout` seconds at most for each question."""
    with gr.Blocks(title="Florence-2", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(f"# Florence-2\nAnswers come from `{url}`.")
        top = gr.Row()
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                form = Form()
                go = gr.Button("Ask", variant="primary", elem_id="ask")
                stop = gr.Button("Stop", visible=False, elem_id="stop")
            with gr.Column(scale=3, min_width=300), gr.Row():
                slots = [Slot(place) for place in range(MOST_SIDE_BY_SIDE)]
        with top:
            examples = gr.Examples(
                [[EXAMPLE, *filled] for filled in EXAMPLES.values()],
                [form.picture, form.task, form.beside, form.text, form.region],
                example_labels=list(EXAMPLES),
                cache_examples=False,
            )

        def answers(
            picture: str | None, task: str | None, beside: Sequence[str], text: str, region: str,
            beams: int | None, tokens: int | None,
        ) -> Iterator[Updates]:  # fmt: skip
            tasks = all_tasks(task, beside) or [""]
            yield {go: gr.update(visible=False), stop: gr.update(visible=True)} | _asked(slots, tasks)
            options = Options(num_beams=beams, max_new_tokens=tokens, timeout=timeout)
            for place, card in ask(client, picture, tasks, text, region, options):
                yield slots[place].show(card)

        form.follow()
        asking: dict[str, Any] = {
            "fn": answers,
            "inputs": form.inputs,
            "outputs": [go, stop, *(output for slot in slots for output in slot.outputs)],
            "show_progress": "hidden",
        }
        at_rest: dict[str, Any] = {
            "fn": lambda: (gr.update(visible=True), gr.update(visible=False)),
            "outputs": [go, stop],
            "show_progress": "hidden",
        }
        runs = [gr.on([go.click, form.text.submit], **asking), examples.load_input_event.then(**asking)]
        for run in runs:
            run.then(**at_rest, js=SCROLL_TO_ANSWERS)
        stop.click(**at_rest, cancels=runs)
    return page


def _asked(slots: Sequence[Slot], tasks: Sequence[str]) -> Updates:
    updates: Updates = {}
    for place, slot in enumerate(slots):
        updates |= slot.waiting(tasks[place]) if place < len(tasks) else slot.empty()
    return updates
