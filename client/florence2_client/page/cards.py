"""Show answers as HTML, side by side where there is room. Gradio would lose updates if each were a component."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from florence2.tasks import task_from_name
from florence2_client.page.images import data_url
from florence2_client.page.requests import Card

CONFIDENCES = "Percentages say how sure the model is of the label and the place."


def heading(task: str) -> str:
    """Return what a task does, with its name: `Objects with their categories (od)`. A free prompt is its own name."""
    known = task_from_name(task)
    return f"{known.summary[0].upper()}{known.summary[1:]} ({known.name})" if known else task


def card_html(place: int, card: Card, image: str | None, save: Callable[[Image.Image, str], str]) -> str:
    """Return the HTML of a card. `image` is the file that it is about; `save` makes a URL of an image and a name."""
    title = f"{heading(card.task)}: {card.phrase}" if card.phrase else heading(card.task)
    parts = [f"<h3>{html.escape(title)}</h3>"]
    if card.error:
        parts.append(f'<p class="error" role="alert">{html.escape(card.error)}</p>')
    elif not card.final:
        parts.append('<progress aria-label="The request is running"></progress>')
    if card.note:
        parts.append(f"<p>{html.escape(card.note)}</p>")
    if card.timing:
        parts.append(f"<p>{card.timing}</p>")
    if card.overlay:
        parts.append(f'<img alt="the image with the answer drawn on it" src="{data_url(card.overlay)}">')
    if card.words:
        parts.append(f'<p class="words">{html.escape(card.words)}</p>')
    if card.empty:
        parts.append('<p class="words">Nothing found.</p>')
    if card.rated:
        parts.append(f"<p>{CONFIDENCES}</p>")
    if card.details and card.overlay and card.final:
        details = json.dumps(card.details, indent=2, ensure_ascii=False)
        known = task_from_name(card.task)
        of_phrase = f".{card.phrase}" if card.phrase else ""
        name = re.sub(r"[^\w.-]+", "-", f"{Path(image or '').stem}.{known.name if known else card.task}{of_phrase}")[
            :100
        ]
        json_url = f"data:application/json;base64,{base64.b64encode(details.encode()).decode()}"
        copy = '<button type="button">Copy text</button>' if card.words else ""
        parts.append(
            f'<p class="actions">{copy}<a href="{save(card.overlay, f"{name}.jpg")}" download="{name}.jpg">'
            f'Download image</a><a href="{json_url}" download="{name}.json">Download JSON</a></p>'
            f"<details><summary>Show JSON</summary><pre>{html.escape(details)}</pre></details>"
        )
    return f'<article id="answer-{place}">{"".join(parts)}</article>'
