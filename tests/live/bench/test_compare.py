"""The whole comparison runs on the bundled checkpoint, and the documents hold its figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest
import torch
from PIL import Image

from bench import report
from bench.compare import Load, compare, image, plan
from bench.competitors import Competitor, asking, base_processor, direct, static_batch, stretched_tokenizer
from bench.decode import BASE
from bench.harness import proportional_memory
from bench.report import CAPTION, DETECTION, Machine, Work, draw
from bench.static_batch.generate import Generator


@pytest.fixture(scope="module")
def figures(checkpoint: Path, server) -> report.Figures:
    """Figures of a few requests and one scene; this server is the one that other tests use."""
    ours = Competitor("this server", lambda: asking(server.grpc_url, "florence2_ensemble", [1]), remembers=True)
    rivals = [direct(checkpoint, "float32"), static_batch(checkpoint, "float32")]
    mixed = Load("mixed", (CAPTION, DETECTION) * 4, 8)
    loads = [Load("<CAPTION>", (CAPTION,), 2), Load("<CAPTION>", (CAPTION,) * 8, 8), mixed]
    work = {"flops": 4 * 10**11, "step_bytes": 10**8}
    return compare([*rivals, ours], [*rivals, ours], loads, scene_count=1) | {"work": work}


def test_all_get_the_same_requests(figures):
    """Each competitor answers every request of its loads, with equally many tokens for one client."""
    script, *servers = figures["competitors"].values()
    assert [(one["load"], one["clients"]) for one in script["loads"]] == [("<CAPTION>", 1)]
    assert len({competitor["loads"][0]["tokens"] for competitor in (script, *servers)}) == 1
    for server in servers:
        *_, mixed = server["loads"]
        assert mixed["latencies"].keys() == {str(CAPTION), str(DETECTION)}
        assert sum(map(len, mixed["latencies"].values())) == 8
    assert all(one["memory_mib"] > 100 for one in (script, servers[0]))


def test_tables_and_plot_show_every_competitor(figures, tmp_path):
    """Each has a line in the summary and in the overview, and a column in the details."""
    tables = report.summary(figures), report.overview(figures), report.details(figures)
    assert all(f"| {name} |" in table for name in figures["competitors"] for table in tables)
    assert all("the machine's limit" in table for table in tables[:2])
    draw(figures, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 1000


def test_in_float32_all_give_the_same_answers(figures):
    """So only speed differs: fifteen tasks, 3 beams, with and without padded batches."""
    assert {one["equal"] for one in figures["competitors"].values()} == {1.0}
    assert len({one["score"] for one in figures["competitors"].values()}) == 1


def test_the_documents_hold_what_was_measured():
    """After an edit of the report: python -c 'from bench.report import *; write(json.loads(JSON.read_text()))'"""
    if not report.JSON.exists():
        pytest.skip("python -m bench.compare has not been run yet")
    measured = json.loads(report.JSON.read_text(encoding="utf-8"))
    for document in (report.README, report.DOCUMENT):
        text = document.read_text(encoding="utf-8")
        assert report.BLOCK.search(text) and report.filled(text, measured) == text


def test_each_of_a_batch_has_its_own_limit(checkpoint):
    """The batch continues for the longest, whose answer is the same as without the other."""
    generator = Generator(checkpoint, torch.float32)
    together = generator.answer([image(1), image(2)], ["<CAPTION>", "<OD>"], [5, 12], beams=3)
    assert [answer.tokens for answer in together] == [5, 12]
    assert together[1:] == generator.answer([image(2)], ["<OD>"], [12], beams=3)


def test_the_random_checkpoint_has_the_published_ids():
    """Locations and the image token have the ids of Florence-2-base, and prompts still work."""
    tokenizer = stretched_tokenizer()
    assert tokenizer.token_to_id("<loc_0>") == BASE.tokens.first_location
    assert tokenizer.token_to_id("<image>") == BASE.tokens.known == tokenizer.get_vocab_size() - 1
    processor = base_processor()
    inputs = processor(images=Image.effect_noise((64, 64), 50).convert("RGB"), text="<CAPTION>", return_tensors="pt")
    assert inputs.pixel_values.shape[-2:] == (BASE.image.height, BASE.image.width)
    assert (inputs.input_ids == BASE.tokens.known).sum() == BASE.image.tokens
    assert processor.tokenizer.decode(inputs.input_ids[0], skip_special_tokens=True) == "What does the image describe?"


def test_more_clients_share_the_weights_read_for_a_token():
    """The limit rises with the clients and falls with the length of answers."""
    work, machine = Work(flops=4 * 10**11, step_bytes=10**8), Machine(4e11, 1e11, 4e10)
    assert work.answers_per_second(machine, 1, 20) < work.answers_per_second(machine, 8, 20) < 1
    assert work.answers_per_second(machine, 8, 100) < work.answers_per_second(machine, 8, 20)


def test_memory_of_an_ended_process_is_none():
    with psutil.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=PIPE, stdout=PIPE) as process:
        process.stdout.readline()
        assert proportional_memory(process) > 1
        process.stdin.close()
    assert proportional_memory(process) == 0


def test_a_load_keeps_all_its_clients_busy():
    """It has at least as many requests as clients."""
    loads = plan()
    assert all(load.requests >= len(load.clients) for load in loads)
    assert {kind for load in loads for kind in load.clients} >= {CAPTION, DETECTION}
