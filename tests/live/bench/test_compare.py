"""The comparison runs whole on the bundled checkpoint, and the documents hold what its figures say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.compare import report
from bench.compare.__main__ import compare, plan
from bench.compare.checkpoint import base_processor, stretched_tokenizer
from bench.compare.competitors import Competitor, asking, direct, static_batch
from bench.compare.generate import Generator
from bench.compare.limit import Machine, Work
from bench.compare.loads import CAPTION, DETECTION, Load, picture
from bench.compare.memory import descendants, proportional_mib
from bench.compare.plot import draw
from bench.decode import BASE


@pytest.fixture(scope="module")
def figures(checkpoint: Path, server) -> report.Figures:
    """Few requests, one scene; this server is the one that other tests use, too."""
    ours = Competitor("this server", lambda: asking(server.grpc_url, "florence2_ensemble", [1]), remembers=True)
    rivals = [direct(checkpoint, "float32"), static_batch(checkpoint, "float32")]
    mixed = Load("mixed", (CAPTION, DETECTION) * 4, 8)
    loads = [Load("<CAPTION>", (CAPTION,), 2), Load("<CAPTION>", (CAPTION,) * 8, 8), mixed]
    work = {"flops": 4 * 10**11, "step_bytes": 10**8}
    return compare([*rivals, ours], [*rivals, ours], loads, scenes=1) | {"work": work}


def test_all_are_asked_the_same(figures):
    """Each competitor answers every request of the loads that suit it; one caller gets as many tokens from each."""
    script, *servers = figures["competitors"].values()
    assert [(one["load"], one["callers"]) for one in script["loads"]] == [("<CAPTION>", 1)]
    assert len({competitor["loads"][0]["tokens"] for competitor in (script, *servers)}) == 1
    for server in servers:
        *_, mixed = server["loads"]
        assert mixed["latencies"].keys() == {str(CAPTION), str(DETECTION)}
        assert sum(map(len, mixed["latencies"].values())) == 8
    assert all(one["memory_mib"] > 100 for one in (script, servers[0]))


def test_tables_and_plot_show_every_competitor(figures, tmp_path):
    """A line each in the summary, a column each in the details, and the limit of the machine."""
    first, second = report.summary(figures), report.details(figures)
    assert all(f"| {name} |" in first and f"| {name} |" in second for name in figures["competitors"])
    assert "the machine's limit" in first
    draw(figures, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 1000


def test_in_float32_all_give_the_same_answers(figures):
    """So the comparison is one of speed: fifteen tasks, 3 beams, padded batches or not."""
    assert {one["equal"] for one in figures["competitors"].values()} == {1.0}
    assert len({one["score"] for one in figures["competitors"].values()}) == 1


def test_the_documents_hold_what_was_measured():
    """After an edit: python -c 'from bench.compare.report import *; write(json.loads(JSON.read_text()))'"""
    if not report.JSON.exists():
        pytest.skip("python -m bench.compare has not been run yet")
    measured = json.loads(report.JSON.read_text(encoding="utf-8"))
    for document in (report.README, report.DOCUMENT):
        text = document.read_text(encoding="utf-8")
        assert report.BLOCK.search(text) and report.filled(text, measured) == text


def test_each_of_a_batch_has_its_own_limit(checkpoint):
    """The batch goes on for the longest, whose answer is the one that it gets alone."""
    generator = Generator(checkpoint, torch.float32)
    together = generator.answer([picture(1), picture(2)], ["<CAPTION>", "<OD>"], [5, 12], beams=3)
    assert [answer.tokens for answer in together] == [5, 12]
    assert together[1:] == generator.answer([picture(2)], ["<OD>"], [12], beams=3)


def test_the_random_checkpoint_has_the_published_ids():
    """Locations and the image token are where Florence-2-base has them, and prompts are still understood."""
    tokenizer = stretched_tokenizer()
    assert tokenizer.token_to_id("<loc_0>") == BASE.tokens.first_location
    assert tokenizer.token_to_id("<image>") == BASE.tokens.known == tokenizer.get_vocab_size() - 1
    processor = base_processor()
    inputs = processor(images=Image.effect_noise((64, 64), 50).convert("RGB"), text="<CAPTION>", return_tensors="pt")
    assert inputs.pixel_values.shape[-2:] == (BASE.image.height, BASE.image.width)
    assert (inputs.input_ids == BASE.tokens.known).sum() == BASE.image.tokens
    assert processor.tokenizer.decode(inputs.input_ids[0], skip_special_tokens=True) == "What does the image describe?"


def test_more_callers_share_what_is_read_for_a_token():
    """The limit rises with them, and falls with the length of answers."""
    work, machine = Work(flops=4 * 10**11, step_bytes=10**8), Machine(4e11, 1e11, 4e10)
    assert work.answers_per_second(machine, 1, 20) < work.answers_per_second(machine, 8, 20) < 1
    assert work.answers_per_second(machine, 8, 100) < work.answers_per_second(machine, 8, 20)


def test_memory_is_that_of_all_processes_below():
    """A child of a child counts."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        below = list(descendants(child.pid))
        assert len(below) == 1 and proportional_mib(below[0]) > 1
        child.stdin.close()
    assert proportional_mib(below[0]) == 0


def test_a_script_has_one_caller_and_every_load_has_pictures_of_its_own():
    """As many requests as callers at least, so that all of them are busy."""
    loads = plan()
    assert all(load.requests >= len(load.callers) for load in loads)
    assert {kind for load in loads for kind in load.callers} >= {CAPTION, DETECTION}
