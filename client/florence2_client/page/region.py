"""The picture with a box on it, drawn with mouse, pen or finger: Gradio's HTML component with a script and a style."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

FOLDER = Path(__file__).parent
TEMPLATE = """\
<div class="stage"><img src="${picture}" alt="the picture to draw a box on" draggable="false"><div class="box" hidden>
</div></div><p>Draw a box around what you ask about.</p>
"""


def region_picker(elem_id: str) -> gr.HTML:
    """Its value is the region as `x1,y1,x2,y2` in pixels of the picture as displayed, or `""`; `picture` is a URL."""
    return gr.HTML(
        "",
        picture="",
        html_template=TEMPLATE,
        css_template=(FOLDER / "region.css").read_text(encoding="utf-8"),
        js_on_load=(FOLDER / "region.js").read_text(encoding="utf-8"),
        visible="hidden",
        elem_id=elem_id,
    )
