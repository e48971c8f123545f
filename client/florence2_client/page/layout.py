"""The page: the form, and how its parts react."""

from __future__ import annotations

import functools
import json
import secrets
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import gradio as gr
from gradio.components import Component
from PIL import Image

from florence2.contract import OPTIONS, Option
from florence2.errors import InvalidRequest
from florence2.tasks import TASKS, TaskInput
from florence2_client.client import Client
from florence2_client.page.cards import card_html, heading
from florence2_client.page.images import Preview, preview_of
from florence2_client.page.requests import Card, ask, given_options, input_of, running
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
LABELS = {  # of the generation options; the names that requests use stand in the line below
    "max_new_tokens": "Longest answer, in tokens",
    "num_beams": "Width of the search",
    "no_repeat_ngram_size": "Length of sequences that may not repeat",
    "length_penalty": "Preference for long answers",
    "early_stopping": "Stop early",
    "min_new_tokens": "Shortest answer, in tokens",
    "repetition_penalty": "Penalty for repetition",
    "suppress_repeated_bos": "No repeated start tokens",
    "temperature": "Temperature",
    "top_k": "Number of likely tokens to draw from",
    "top_p": "Probability of the tokens to draw from",
    "seed": "Seed",
}
CSS = """
#task input { text-overflow: ellipsis; padding-right: 2em; } .toast-close { opacity: 1 !important; }
input[type="range"]::-webkit-slider-thumb { outline: 1px solid var(--neutral-400); }
"""
TEMPLATE = """\
${image ? `<div class="stage ${drawable ? "drawable" : ""}"><img src="${image}" alt="your image" draggable="false">
<div class="box" hidden></div></div>` : ""}
${problem ? `<p role="alert">No preview: ${problem}</p>` : drawable ? "<p>Draw a box around the region.</p>" : ""}
"""
# On a phone, the answers are below the form.
SCROLL_TO_ANSWERS = """() => {
  const first = document.querySelector("#answer-0");
  if (first?.getBoundingClientRect().top > innerHeight / 2) first.scrollIntoView({ behavior: "smooth" });
}"""
KEEP_OR_REPLACE = f"""(_, image, ...fields) => {{
  const own = image && image.path !== {json.dumps(EXAMPLE)};
  return [!own || confirm("Replace your image with the example's?"), image, ...fields];
}}"""

Updates: TypeAlias = "dict[Any, Any]"

# Passes the file on unread: the server explains what is wrong with it, where Gradio would fail silently.
# Created without Gradio's metaclass, which writes a .pyi file next to every module that defines a component.
ImageFile: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image),
    "ImageFile",
    (gr.Image,),
    {"is_template": True, "preprocess": lambda _component, payload: payload.path if payload else None},
)


def theme() -> gr.themes.Base:
    """Return Gradio's theme with system fonts, because Gradio would fetch others, and with more contrast."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_600", input_placeholder_color_dark="*neutral_300",
        block_title_text_color="*neutral_700", block_label_text_color="*neutral_700",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
    )  # fmt: skip


def option_field(option: Option) -> Component:
    """Return the field of a generation option. Empty, it leaves the option to the checkpoint.

    Beware: Gradio's Number turns an empty field into 0 (6.31), so numbers are entered as text.
    """
    limits = f" ({option.range})" if option.range else ""
    shared = {
        "label": LABELS.get(option.keyword, option.keyword.replace("_", " ").capitalize()),
        "info": f"{option.keyword}: {option.help}{limits}",
        "elem_id": option.keyword.replace("_", "-"),
    }
    default = f"default: {option.default}"
    if option.type == "BOOL":
        return gr.Dropdown([(default, None), ("yes", True), ("no", False)], value=None, **shared)
    return gr.Textbox("", placeholder=default, **shared)


class Form:
    """The request: image, tasks, text, region and options."""

    def __init__(self) -> None:
        self.image = ImageFile(label="Image", height=360, buttons=[], elem_id="image")
        # Its value is the region as `x1,y1,x2,y2` in pixels of the image as displayed, or "".
        self.preview = gr.HTML(
            "", image="", width=0, height=0, problem="", drawable=False, html_template=TEMPLATE,
            css_template=(FOLDER / "region.css").read_text(encoding="utf-8"),
            js_on_load=(FOLDER / "region.js").read_text(encoding="utf-8"),
            visible="hidden", elem_id="preview",
        )  # fmt: skip
        self.another = gr.Button("Another image", size="sm", visible="hidden", elem_id="another")
        tasks = [(heading(task.name), task.name) for task in TASKS.values()]
        self.task = gr.Dropdown(
            tasks, value="od", label="Task", info="Choose a task, or type a prompt for your own model.",
            allow_custom_value=True, elem_id="task",
        )  # fmt: skip
        self.others = gr.Dropdown(
            tasks, value=[], multiselect=True, max_choices=MOST_SIDE_BY_SIDE - 1, label="Compare with",
            info="More tasks on the same image; the answers are shown side by side.", elem_id="others",
        )  # fmt: skip
        self.text = gr.Textbox(label="Phrase, caption or question", visible="hidden", elem_id="text",
                               info="For several phrases, enter one per line (Shift+Enter).")  # fmt: skip
        self.region = gr.Textbox(
            label="Box", placeholder="x1,y1,x2,y2 in pixels, or draw it", visible="hidden", elem_id="region"
        )
        info = "Leaves out objects with a lower confidence."
        self.confidence = gr.Slider(0, 1, 0, step=0.01, label="Minimum confidence", info=info, elem_id="confidence")
        with gr.Accordion("Options", open=False):
            self.options = [option_field(option) for option in OPTIONS]
            self.tiles = gr.Checkbox(
                False, label="Look for small things", elem_id="tiles",
                info="Sends overlapping tiles of a large image as well. For detection and reading text.",
            )  # fmt: skip
            self.stream = gr.Checkbox(
                False, label="Show the answer while it is generated", elem_id="stream",
                info="With one beam. The server must be started with `florence2 serve --stream`.",
            )  # fmt: skip

    @property
    def inputs(self) -> list[Component]:
        """Return the fields of a request."""
        return [self.image, self.task, self.others, self.text, self.region, self.confidence, self.tiles, self.stream,
                *self.options]  # fmt: skip

    def follow(self) -> None:
        """Adapt the form to the image, which is replaced by its preview, and to the input that the tasks take."""
        self.image.change(self._show_image, self.image, [self.image, self.preview, self.another], concurrency_limit=2)
        gr.on(
            [self.task.change, self.others.change], self._show_fields, [self.task, self.others],
            [self.preview, self.text, self.region], show_progress="hidden",
        )  # fmt: skip
        self.preview.input(None, self.preview, self.region, js="region => region")
        self.region.change(None, self.region, self.preview, js="region => region")
        self.image.input(None, None, self.region, js="() => ''")
        self.another.click(None, None, [self.image, self.region], js="() => [null, '']")

    def _show_image(self, image: str | None) -> Updates:
        preview = preview_of(image) if image else Preview()
        return {
            self.image: gr.update(visible=shown(not image)),
            self.preview: gr.update(visible=shown(bool(image)), **asdict(preview)),
            self.another: gr.update(visible=shown(bool(image))),
        }

    def _show_fields(self, task: str | None, others: Sequence[str]) -> Updates:
        inputs = [input_of(name) for name in all_tasks(task, others)]
        region = TaskInput.REGION in inputs
        return {
            self.preview: gr.update(drawable=region),
            self.text: gr.update(visible=shown(TaskInput.TEXT in inputs or None in inputs)),
            self.region: gr.update(visible=shown(region)),
        }


def shown(yes: bool) -> Literal[True, "hidden"]:
    """Return `visible` for Gradio. It removes invisible components, and may lose their values; hidden ones stay."""
    return True if yes else "hidden"


def all_tasks(task: str | None, others: Sequence[str]) -> list[str]:
    """Return each task once, in order."""
    return list(dict.fromkeys(filter(None, [(task or "").strip(), *others])))


class Answers:
    """The answers to a form's requests, and the buttons that start and stop them."""

    def __init__(self, client: Client, timeout: float) -> None:
        self.client, self.timeout = client, timeout
        self.run_button = gr.Button("Run", variant="primary", elem_id="run", render=False)
        self.stop_button = gr.Button("Stop", visible=False, elem_id="stop", render=False)
        self.cards = gr.HTML(
            "<p>Answers appear here.</p>", css_template=(FOLDER / "cards.css").read_text(encoding="utf-8"),
            js_on_load=(FOLDER / "cards.js").read_text(encoding="utf-8"), elem_id="answers", render=False,
        )  # fmt: skip

    @property
    def outputs(self) -> list[Component]:
        """Return what `run` updates."""
        return [self.run_button, self.stop_button, self.cards]

    def run(
        self, image: str | None, task: str | None, others: Sequence[str], text: str, region: str,
        confidence: float, tiles: bool, stream: bool, *values: str | bool | None,
    ) -> Iterator[Updates]:  # fmt: skip
        """Send the requests and yield the cards of their answers as they grow."""
        tasks = all_tasks(task, others) or [""]
        waiting = [Card(task) for task in tasks]
        try:
            waiting = running(tasks, text)
            options = Options(
                **given_options(values), timeout=self.timeout, tiles="auto" if tiles else None  # type: ignore[typeddict-item]
            )  # fmt: skip
        except InvalidRequest as error:
            cards: Iterator[tuple[int, Card]] = enumerate([replace(card, error=str(error)) for card in waiting])
        else:
            cards = ask(self.client, image, tasks, text, region, options, stream=stream, min_confidence=confidence)
        articles = [card_html(place, card, image, self._save) for place, card in enumerate(waiting)]
        yield {self.run_button: gr.update(visible=False), self.stop_button: gr.update(visible=True),
               self.cards: "".join(articles)}  # fmt: skip
        for place, card in cards:
            articles[place] = card_html(place, card, image, self._save)
            yield {self.cards: "".join(articles)}

    def _save(self, image: Image.Image, name: str) -> str:
        """Return the URL of a new file, whose folder has a random name, and which Gradio deletes after a day.

        The URL is relative to the page because that may be behind a proxy.
        """
        path = Path(self.cards.GRADIO_CACHE, secrets.token_urlsafe(), name)
        path.parent.mkdir()
        image.thumbnail((65_500, 65_500))  # the longest sides that JPEG has; other images stay as they are
        image.save(path, quality=90)
        self.cards.temp_files.add(str(path))
        return f"gradio_api/file={quote(str(path))}"


def make_page(client: Client, url: str, timeout: float) -> gr.Blocks:
    """Return the page for the client's server; each request may take `timeout` seconds."""
    gr.set_static_paths([EXAMPLE])
    with gr.Blocks(title="Florence-2", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(f"# Florence-2\nChoose an image and a task, or try an example. Server: `{url}`")
        with gr.Row():
            examples = [gr.Button(label, size="sm", min_width=120) for label in EXAMPLES]
        answers = Answers(client, timeout)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                form = Form()
                answers.run_button.render()
                answers.stop_button.render()
            with gr.Column(scale=3, min_width=300):
                answers.cards.render()
        agreed = gr.Checkbox(visible=False)

        def load(filled: tuple[Any, ...], agreed: bool, *fields: Any) -> Iterator[Updates]:
            if not agreed:
                yield {answers.cards: gr.skip()}  # Gradio fails if nothing is yielded
                return
            yield dict(zip(form.inputs, (EXAMPLE, *filled), strict=False))
            yield from answers.run(EXAMPLE, *filled, *fields[1 + len(filled) :])

        form.follow()
        request: dict[str, Any] = {"fn": answers.run, "inputs": form.inputs, "outputs": answers.outputs}
        runs = [
            # With Gradio's "once", the first click after a stop is lost. The button is hidden while requests run.
            answers.run_button.click(**request, trigger_mode="multiple", show_progress="hidden"),
            form.text.submit(**request, show_progress="hidden"),
        ] + [
            example.click(
                functools.partial(load, filled), [agreed, *form.inputs], [*form.inputs, *answers.outputs],
                js=KEEP_OR_REPLACE, show_progress="hidden",
            )
            for example, filled in zip(examples, EXAMPLES.values(), strict=True)
        ]  # fmt: skip
        at_rest: dict[str, Any] = {
            "fn": lambda: (gr.update(visible=True), gr.update(visible=False)),
            "outputs": [answers.run_button, answers.stop_button],
            "show_progress": "hidden",
        }
        for run in runs:
            run.then(**at_rest, js=SCROLL_TO_ANSWERS)
        answers.stop_button.click(**at_rest, cancels=runs)
        page.load(None, js=(FOLDER / "drop.js").read_text(encoding="utf-8"))
    return page
