"""The page: the form, and how its parts react."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import gradio as gr
from gradio.components import Component
from gradio.data_classes import ImageData

from florence2.contract import OPTIONS, Option
from florence2.errors import InvalidOption
from florence2.tasks import TASKS, TaskInput
from florence2_client.client import Client
from florence2_client.page.cards import STYLE, cards_html
from florence2_client.page.requests import Card, ask, given_options, takes
from florence2_client.request import Options

MOST_SIDE_BY_SIDE = 4
FOLDER = Path(__file__).parent
EXAMPLE = str(FOLDER / "example.jpg")
EXAMPLES = {  # label -> task, tasks to compare with, text, region
    "Find objects": ("od", [], "", ""),
    "Describe": ("more_detailed_caption", [], "", ""),
    "Find a phrase": ("caption_to_phrase_grounding", [], "a yellow star and a green circle", ""),
    "Outline an object in a box": ("region_to_segmentation", [], "", "278,88,480,306"),
    "Read text": ("ocr_with_region", [], "", ""),
    "Four tasks side by side": ("caption", ["dense_region_caption", "ocr", "region_to_category"], "", "32,35,255,252"),
}
CSS = "#task input { text-overflow: ellipsis; padding-right: 2em; }"
TEMPLATE = """\
<div class="stage"><img src="${image}" alt="the image to draw a box on" draggable="false"><div class="box" hidden>
</div></div><p>Draw a box around the region.</p>
"""
# On a phone, the answers are below the form.
SCROLL_TO_ANSWERS = """() => {
  const first = document.querySelector("#answer-0");
  if (first?.getBoundingClientRect().top > innerHeight / 2) first.scrollIntoView({ behavior: "smooth" });
}"""

Updates: TypeAlias = "dict[Any, Any]"


def _path(_component: gr.Image, payload: ImageData | None) -> str | None:
    return payload.path if payload else None


# Passes the file on unread: the server explains what is wrong with it, where Gradio would fail silently.
# Created without Gradio's metaclass, which writes a .pyi file next to every module that defines a component.
ImageFile: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image), "ImageFile", (gr.Image,), {"is_template": True, "preprocess": _path}
)


def _option_field(option: Option) -> Component:
    """Return the field of a generation option. Empty, it leaves the option to the checkpoint.

    Beware: Gradio's Number turns an empty field into 0 (6.31), so numbers are entered as text.
    """
    label = option.keyword.replace("_", " ").capitalize()
    limits = f" ({option.range})" if option.range else ""
    info = f"{option.help}{limits}; empty: {option.default}"
    elem_id = option.keyword.replace("_", "-")
    if option.type == "BOOL":
        choices = [("", None), ("yes", True), ("no", False)]
        return gr.Dropdown(choices, value=None, label=label, info=info, elem_id=elem_id)
    return gr.Textbox("", label=label, info=info, elem_id=elem_id)


def region_picker(elem_id: str) -> gr.HTML:
    """Return the image with a box on it, drawn with mouse, pen or finger.

    Its value is the region as `x1,y1,x2,y2` in pixels of the image as displayed, or `""`; `image` is a URL.
    """
    return gr.HTML(
        "",
        image="",
        html_template=TEMPLATE,
        css_template=(FOLDER / "region.css").read_text(encoding="utf-8"),
        js_on_load=(FOLDER / "region.js").read_text(encoding="utf-8"),
        visible="hidden",
        elem_id=elem_id,
    )


class Form:
    """The request: image, tasks, text, region and options."""

    def __init__(self) -> None:
        self.image = ImageFile(label="Image", height=360, buttons=[], elem_id="image")
        self.picker = region_picker(elem_id="picker")
        self.another = gr.Button("Another image", size="sm", visible="hidden", elem_id="another")
        self.task = gr.Dropdown(
            [(f"{task.name} · {task.summary}", task.name) for task in TASKS.values()], value="od",
            label="Task", info="from the list, or a fine-tune's own prompt", allow_custom_value=True, elem_id="task",
        )  # fmt: skip
        self.others = gr.Dropdown(
            [task.name for task in TASKS.values()], value=[], multiselect=True, max_choices=MOST_SIDE_BY_SIDE - 1,
            label="Compare with", info="more tasks on the same image, side by side", elem_id="others",
        )  # fmt: skip
        self.text = gr.Textbox(label="Phrase or caption", visible="hidden", elem_id="text")
        self.region = gr.Textbox(
            label="Box", placeholder="x1,y1,x2,y2 in pixels, or draw it", visible="hidden", elem_id="region"
        )
        with gr.Accordion("Options", open=False):
            self.options = [_option_field(option) for option in OPTIONS]
            self.stream = gr.Checkbox(
                False, label="Show answers as they grow", elem_id="stream",
                info="one beam; the server must be started with `florence2 serve --stream`",
            )  # fmt: skip

    @property
    def inputs(self) -> list[Component]:
        """Return the fields of a request."""
        return [self.image, self.task, self.others, self.text, self.region, self.stream, *self.options]

    def follow(self) -> None:
        """Adapt the form to the tasks and the image: for a region, the image becomes one to draw a box on."""
        arranged: dict[str, Any] = {
            "fn": self._arrange,
            "inputs": [self.image, self.task, self.others],
            "outputs": [self.image, self.picker, self.another, self.text, self.region],
            "show_progress": "hidden",
        }
        gr.on([self.task.change, self.others.change, self.image.change], **arranged)
        self.picker.input(None, self.picker, self.region, js="region => region")
        self.region.change(None, self.region, self.picker, js="region => region")
        self.image.input(None, None, self.region, js="() => ''")
        self.another.click(None, None, [self.image, self.region], js="() => [null, '']")

    def _arrange(self, image: str | None, task: str | None, others: Sequence[str]) -> Updates:
        tasks = all_tasks(task, others)
        region = takes(tasks, TaskInput.REGION)
        drawing = region and bool(image)
        return {
            self.image: gr.update(visible=_shown(not drawing)),
            self.picker: gr.update(visible=_shown(drawing), image=_url(image)),
            self.another: gr.update(visible=_shown(drawing)),
            self.text: gr.update(visible=_shown(takes(tasks, TaskInput.TEXT))),
            self.region: gr.update(visible=_shown(region)),
        }


def _url(image: str | None) -> str:
    """Return the URL of the file, relative to the page because that may be behind a proxy."""
    return f"gradio_api/file={quote(image)}" if image else ""


def _shown(shown: bool) -> Literal[True, "hidden"]:
    """Return `visible` for Gradio. It removes invisible components, and may lose their values; hidden ones stay."""
    return True if shown else "hidden"


def all_tasks(task: str | None, others: Sequence[str]) -> list[str]:
    """Return each task once, in order."""
    return list(dict.fromkeys(filter(None, [(task or "").strip(), *others])))


def make_page(client: Client, url: str, timeout: float) -> gr.Blocks:
    """Return the page for the client's server; each request may take `timeout` seconds."""
    with gr.Blocks(title="Florence-2", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(f"# Florence-2\nAnswers come from `{url}`.")
        top = gr.Row()
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                form = Form()
                go = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Stop", visible=False, elem_id="stop")
            with gr.Column(scale=3, min_width=300):
                shown = gr.HTML(css_template=STYLE, elem_id="answers")
        with top:
            examples = gr.Examples(
                [[EXAMPLE, *filled] for filled in EXAMPLES.values()],
                [form.image, form.task, form.others, form.text, form.region],
                example_labels=list(EXAMPLES),
                cache_examples=False,
            )

        def answers(
            image: str | None, task: str | None, others: Sequence[str], text: str, region: str, stream: bool,
            *values: str | bool | None,
        ) -> Iterator[Updates]:  # fmt: skip
            tasks = all_tasks(task, others) or [""]
            cards = [Card(task, timing="running …") for task in tasks]
            yield {go: gr.update(visible=False), stop: gr.update(visible=True), shown: cards_html(cards)}
            try:
                options = Options(**given_options(values), timeout=timeout)  # type: ignore[typeddict-item]
            except InvalidOption as error:
                yield {shown: cards_html([Card(task, error=str(error)) for task in tasks])}
                return
            for place, card in ask(client, image, tasks, text, region, options, stream=stream):
                cards[place] = card
                yield {shown: cards_html(cards)}

        form.follow()
        running: dict[str, Any] = {
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
            # With Gradio's "once", the first click after a stop is lost. The button is hidden while requests run.
            go.click(**running, trigger_mode="multiple"),
            form.text.submit(**running),
            examples.load_input_event.then(**running),
        ]
        for run in runs:
            run.then(**at_rest, js=SCROLL_TO_ANSWERS)
        stop.click(**at_rest, cancels=runs)
    return page
