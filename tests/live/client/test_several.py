"""Several tasks, phrases and regions in one call, against the real embedded server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2.errors import InvalidPrompt
from florence2_client import AsyncClient, Client, cli

SCENE = Path(__file__).parents[3] / "demo" / "images" / "scene.png"
PHRASES = ["the purple star", "the green triangle"]
REGIONS = [(60, 175, 295, 455), (900, 0, 950, 50), (345, 65, 570, 120)]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_one_call_answers_as_single_ones_do(server, scheme):
    """In order, over both transports and with both clients; the region outside the image has its own error."""
    with Client(getattr(server, f"{scheme}_url")) as client:
        tasks = ["caption", "od", "ocr_with_region"]
        assert [result.text for result in client.ask(SCENE, tasks)] == [client.run(SCENE, task).text for task in tasks]
        found = client.segment(SCENE, PHRASES)
        texts = [client.segment(SCENE, phrase).text for phrase in PHRASES]
        assert [result.text for result in found] == texts and found.labels == PHRASES
        star, outside, word = client.ocr_region(SCENE, REGIONS)
        assert star.error is None and word.labels == ["HELLO"]
        assert isinstance(outside.error, InvalidPrompt) and "lies outside the image" in str(outside.error)

    async def same() -> None:
        async with AsyncClient(getattr(server, f"{scheme}_url")) as client:
            assert [result.text for result in await client.segment(SCENE, PHRASES)] == texts

    asyncio.run(same())


def test_masks_cover_what_was_drawn(server, tmp_path, capsys):
    """The star's mask is purple in the image, and the triangle's green; the command writes the same masks."""
    pixels = np.asarray(Image.open(SCENE).convert("RGB")).astype(int)
    with Client(server.grpc_url) as client:
        star, triangle = client.segment(SCENE, PHRASES).to_masks()
    for mask, strong, weak in ((star, 2, 1), (triangle, 1, 0)):
        colored = pixels[..., strong] - pixels[..., weak] > 30
        assert mask.sum() > 2000 and colored[mask].mean() > 0.9
    arguments = ["--task", "referring_expression_segmentation", "--masks", str(tmp_path), "--url", server.grpc_url]
    texts = [word for phrase in PHRASES for word in ("--text", phrase)]
    assert cli.main(["run", str(SCENE), *arguments, *texts]) == 0
    assert [json.loads(line)["prompt_text"] for line in capsys.readouterr().out.splitlines()] == PHRASES
    written = [np.asarray(Image.open(tmp_path / f"{phrase.replace(' ', '_')}.png")) for phrase in PHRASES]
    assert np.array_equal(written, [star, triangle])
