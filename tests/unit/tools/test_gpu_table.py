"""The table that bench.gpu writes for docs/gpu.md."""

from __future__ import annotations

import json

from bench.gpu.table import markdown, read

MEASURED = {
    "exactness": {
        "equal_to_transformers_3_beams": {"equal": 29, "of": 30, "different": ["<OCR>"]},
        "precisions_failed": "RuntimeError: out of memory",
    },
    "steps": {"step_ms_float16_8x3": {"eager": 9.1, "graph": 1.05}},
    "throughput": {"captions_per_second": {"engine": 300, "transformers": 75, "times": 4.0, "target": 3}},
    "served": {
        "`<CAPTION>`, 128 tokens, 1 beams, 1 clients": {"per_second": 5.0, "median_s": 0.2, "99_percent_s": 0.3},
        "ready_seconds": 12.0,
    },
}


def test_a_part_that_did_not_run_leaves_no_line_and_one_that_failed_is_named(tmp_path):
    for part, values in MEASURED.items():
        head = {"device": "NVIDIA L4", "torch": "2.13.0", "date": "2026-11-28", "small": False}
        (tmp_path / f"{part}.json").write_text(json.dumps(head | values))
    text = markdown(read(tmp_path))
    assert "NVIDIA L4, torch 2.13.0, 2026-11-28. Base geometry" in text
    assert "| float32, all tasks, 3 beams | 29 of 30 have transformers' tokens |" in text
    assert "1.05 ms as a graph, 9.1 without" in text and "4.0 times (target 3)" in text
    assert "128 tokens" in text and "652 ms" in text and "ready" not in text
    assert "vision encoder" not in text and text.endswith("Failed: exactness: precisions.\n")
