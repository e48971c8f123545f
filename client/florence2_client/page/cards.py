"""Show answers as HTML, side by side where there is room. Gradio would lose updates if each were a component."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable

from PIL import Image

from florence2_client.page.requests import Card

LARGEST_SIDE = 1280  # pixels of an image as shown
STYLE = """
& { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 1.5em; }
article { min-width: 0; }
h3, p { margin: 0 0 0.5em; overflow-wrap: anywhere; }
img { width: 100%; border-radius: var(--radius-sm); }
.words { font-size: 1.1em; margin-top: 0.5em; white-space: pre-wrap; }
.error { border-left: 4px solid var(--error-icon-color); padding-left: 0.75em; }
pre { max-height: 24em; overflow: auto; font: 0.85em ui-monospace, monospace; }
summary { cursor: pointer; }
"""


def cards_html(cards: Iterable[Card]) -> str:
    """Return the HTML of all cards."""
    return "".join(f'<article id="answer-{place}">{_card(card)}</article>' for place, card in enumerate(cards))


def _card(card: Card) -> str:
    parts = [f"<h3>{html.escape(card.task)}</h3>"]
    if card.error:
        parts.append(f'<p class="error" role="alert">{html.escape(card.error)}</p>')
    if card.timing:
        parts.append(f"<p>{card.timing}</p>")
    if card.overlay:
        parts.append(f'<img alt="the image with the answer drawn on it" src="{_data_url(card.overlay)}">')
    if card.words is not None:
        parts.append(f'<p class="words">{html.escape(card.words) or "(no text)"}</p>')
    if card.details:
        details = html.escape(json.dumps(card.details, indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>JSON</summary><pre>{details}</pre></details>")
    return "".join(parts)


def _data_url(image: Image.Image) -> str:
    shown = image.copy()
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
