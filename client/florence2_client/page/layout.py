"""The page: what is on it, and what follows from what."""

from __future__ import annotations

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
from florence2_client.options import Options
from florence2_client.page.cards import STYLE, cards_html
from florence2_client.page.region import region_picker
from florence2_client.page.requests import Card, ask, takes

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
CSS = "#task input { text-overflow: ellipsis; padding-right: 2em; }"
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
            self.stream = gr.Checkbox(
                False, label="Show answers as they are written", elem_id="stream",
                info="with one beam, from a server started with `florence2 serve --stream`",
            )  # fmt: skip

    @property
    def inputs(self) -> list[Component]:
        return [self.picture, self.task, self.beside, self.text, self.region, self.beams, self.tokens, self.stream]

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


def _address(picture: str | None) -> str:
    """Where the browser gets the file, relative to the page, which may lie behind a proxy."""
    return f"gradio_api/file={quote(picture)}" if picture else ""


def _shown(shown: bool) -> Literal[True, "hidden"]:
    """Gradio takes invisible components off the page, and may lose what was filled in; hidden ones stay."""
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
            with gr.Column(scale=3, min_width=300):
                shown = gr.HTML(css_template=STYLE, elem_id="answers")
        with top:
            examples = gr.Examples(
                [[EXAMPLE, *filled] for filled in EXAMPLES.values()],
                [form.picture, form.task, form.beside, form.text, form.region],
                example_labels=list(EXAMPLES),
                cache_examples=False,
            )

        def answers(
            picture: str | None, task: str | None, beside: Sequence[str], text: str, region: str,
            beams: int | None, tokens: int | None, stream: bool,
        ) -> Iterator[Updates]:  # fmt: skip
            tasks = all_tasks(task, beside) or [""]
            cards = [Card(task, timing="asked …") for task in tasks]
            yield {go: gr.update(visible=False), stop: gr.update(visible=True), shown: cards_html(cards)}
            options = Options(num_beams=beams, max_new_tokens=tokens, timeout=timeout)
            for place, card in ask(client, picture, tasks, text, region, options, stream=stream):
                cards[place] = card
                yield {shown: cards_html(cards)}

        form.follow()
        asking: dict[str, Any] = {
            "fn": answers,
            "inputs": form.inputs,
            "outputs": [go, stop, shown],
            "show_progress": "hidden",
        }
        at_rest: dict[str, Any] = {
            "fn": lambda: (gr.update(visible=True), gr.update(visible=False)),
            "outputs": [go, stop],
            "show_progress": "hidden",
        }
        runs = [
            # Beware: with Gradio's "once" the first click after a stop is lost. The button is hidden while a run lasts.
            go.click(**asking, trigger_mode="multiple"),
            form.text.submit(**asking),
            examples.load_input_event.then(**asking),
        ]
        for run in runs:
            run.then(**at_rest, js=SCROLL_TO_ANSWERS)
        stop.click(**at_rest, cancels=runs)
    return page
