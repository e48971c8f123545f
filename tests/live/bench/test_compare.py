"""The parts of the comparison run on the bundled checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest
import torch
from PIL import Image

from bench.checkpoints import base_processor, stretched_tokenizer
from bench.compare import machine, openvino_port, tables
from bench.compare.competitors import Competitor, line_up, made_by, script, static_batch
from bench.compare.loads import CAPTION, DETECTION, PARTS, Load, image, tiny
from bench.compare.plot import draw
from bench.compare.record import Figures, Record
from bench.compare.scripts import Compiled, OpenVino, Plain
from bench.compare.servers import asking
from bench.compare.steps import compare, listing, plan
from bench.decode import BASE
from bench.harness import proportional_memory
from bench.static_batch.generate import Generator

MEASURED = ("main", "quality")
MIXED = Load("mixed", (CAPTION, DETECTION) * 4, 8)
FREE = (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def figures(checkpoint: Path, server, tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Figures of a few tokens and one scene; this server is the one that other tests use."""
    ours = Competitor("this server", lambda: asking(server.grpc_url, "florence2_ensemble", [1]), MEASURED)
    broken = script("broken", Plain(checkpoint / "missing", "float32"), ("main",), FREE)
    everyone = [script("script", Plain(checkpoint, "float32"), MEASURED, FREE), static_batch(checkpoint, "float32")]
    steps = []
    for step in plan([*everyone, ours, broken], [*everyone, ours], MEASURED, 1, 1):
        loads = step.loads if step.competitor.one_client else [*step.loads, MIXED]
        steps.append(dataclasses.replace(step, loads=list(map(tiny, loads))))
    found = Record(tmp_path_factory.mktemp("compare") / "figures.json")
    found.update(conditions=machine.conditions(), work={"flops": 4 * 10**11, "step_bytes": 10**8})
    compare(steps, found)
    return found.figures


def test_all_get_the_same_requests(figures):
    """Each competitor answers every request of its loads, with equally many tokens for one client."""
    runs = {(run["part"], run["competitor"]): run for run in figures["runs"]}
    script, *servers = (runs["main", name] for name in ("script", "static batch, float32", "this server"))
    assert {one["clients"] for one in script["loads"]} == {1}
    assert [one["tokens"] for one in script["loads"]] == [one["tokens"] for one in servers[0]["loads"][:2]]
    assert servers[0]["loads"][0]["tokens"] == servers[1]["loads"][0]["tokens"]
    for name in ("static batch, float32", "this server"):
        *_, mixed = runs["main", name]["loads"]
        assert {kind.split()[0] for kind in mixed["latencies"]} == {CAPTION.task, DETECTION.task}
        assert sum(map(len, mixed["latencies"].values())) == 8
    assert all(one["memory_mib"] > 100 for one in (script, servers[0]))


def test_what_fails_is_recorded_and_ends_nothing(figures):
    failed = [run for run in figures["runs"] if "error" in run]
    assert [run["competitor"] for run in failed] == ["broken"] and "broken failed" in tables.age(figures)


def test_tables_and_plot_show_every_competitor(figures, tmp_path):
    names = {run["competitor"] for run in figures["runs"] if "loads" in run}
    assert all(f"| {name} |" in tables.summary(figures) for name in names)
    draw(figures, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 1000


def test_in_float32_all_give_the_same_answers(figures):
    """So only speed differs: fifteen tasks, 3 beams, with and without padded batches."""
    measured = [run for run in figures["runs"] if run["part"] == "quality"]
    assert len(measured) == 3
    assert {run["equal"] for run in measured} == {1.0} and len({run["score"] for run in measured}) == 1


@pytest.mark.filterwarnings("ignore")  # of tracing
@pytest.mark.parametrize("way", ["OpenVINO", "static cache"])
def test_other_ways_give_transformers_answers(checkpoint, tmp_path, monkeypatch, way):
    """The OpenVINO port in float32, and a static cache whose decoder is not compiled: one caption."""
    if way == "OpenVINO":
        openvino_port.convert(checkpoint, tmp_path)
        generator = OpenVino(checkpoint, tmp_path, "f32")()
    else:
        monkeypatch.setattr(torch, "compile", lambda module: module)
        generator = Compiled(checkpoint, "float32")()
    expected = Generator(checkpoint, torch.float32).answer([image(1)], ["<CAPTION>"], [20], beams=3)
    assert generator.answer([image(1)], ["<CAPTION>"], [20], beams=3) == expected


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


def test_memory_of_an_ended_process_is_none():
    with psutil.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=PIPE, stdout=PIPE) as process:
        process.stdout.readline()
        assert proportional_memory(process) > 1
        process.stdin.close()
    assert proportional_memory(process) == 0


def test_what_other_sources_made_is_made_again(tmp_path):
    """An export that is older than the code would be measured as if it were the code's."""
    made = tmp_path / "export"
    for sources, kept in (("old", False), ("old", True), ("new", False)):
        with made_by(sources, made):
            assert made.exists() == kept
            made.mkdir(exist_ok=True)


def test_every_part_has_competitors_and_an_estimate(checkpoint, tmp_path):
    """The whole plan is made without making what it serves."""
    everyone = line_up(checkpoint, tmp_path)
    steps = plan(everyone, everyone, PARTS, 2, 10)
    assert {step.part for step in steps} == set(PARTS) and len({step.key for step in steps}) == len(steps)
    assert all(step.seconds > 0 and (step.loads or step.scenes) for step in steps)
    printed = listing(steps, Record(tmp_path / "none.json"))
    assert all(part in printed for part in PARTS) and not list(tmp_path.iterdir())
