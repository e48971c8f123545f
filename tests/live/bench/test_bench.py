"""The load programs run and report correctly. The figures in the documents are measured by hand."""

import argparse
import asyncio
import base64
import json
import re
from pathlib import Path

from bench import capacity, load, perf_inputs


def test_open_loop_load_reports_what_it_sent(server):
    """A mix of two tasks through the ensemble: every request has an outcome, every task its latencies."""

    async def measure():
        async with load.Sender(server.grpc_url, beams=1) as sender:
            return await load.run(sender, load.parse_mix("caption:4=0.5,od:8=0.5"), rate=30, seconds=1)

    report = asyncio.run(measure())
    counts = {name: latency["count"] for name, latency in report["latency"].items()}
    assert sum(report["outcomes"].values()) == sum(counts.values()) >= 10
    assert set(counts) == {"caption:4", "od:8"}
    assert all(0 < latency["p50"] <= latency["p99"] for latency in report["latency"].values())


def test_the_decoder_can_be_loaded_without_the_other_stages(server):
    """Random features replace preprocess and the encoder."""

    async def measure():
        async with load.Sender(server.grpc_url, "florence2_decoder", beams=3) as sender:
            return await load.run(sender, load.parse_mix("caption:4"), rate=20, seconds=0.5)

    assert set(asyncio.run(measure())["outcomes"]) <= {"stop", "length"}


def test_perf_analyzer_gets_images_in_their_form_on_the_wire(capsys, monkeypatch):
    """BYTES follow their length, and every image comes with every task."""
    monkeypatch.setattr("sys.argv", ["perf_inputs", __file__, "--tasks", "od,caption", "--max-new-tokens", "9"])
    assert perf_inputs.main() == 0
    rows = json.loads(capsys.readouterr().out)["data"]
    assert [row["TASK"] for row in rows] == [["<OD>"], ["<CAPTION>"]]
    assert all(row["MAX_NEW_TOKENS"] == [9] for row in rows)
    wire, image = base64.b64decode(rows[0]["IMAGE"]["b64"]), Path(__file__).read_bytes()
    assert wire == len(image).to_bytes(4, "little") + image


def test_the_cost_of_a_request_is_reported_by_stage(server, capsys):
    """The stages' processor seconds add up to the request's, and all processes have memory."""
    options = argparse.Namespace(mix=load.parse_mix("caption:4"), requests=6, in_flight=3, beams=1)
    asyncio.run(capacity.measure(server, options))
    printed = capsys.readouterr().out
    rows = re.findall(r"^(florence2_\w+|tritonserver) +(\d) +([\d.]+) +(\d+)$", printed, re.M)
    assert {"florence2_vision", "florence2_decoder", "tritonserver"} <= {name for name, *_ in rows}
    assert all(int(memory) > 0 for *_, memory in rows)
    total = float(re.search(r"^([\d.]+) processor seconds a request; .*'(?:length|stop)'", printed, re.M)[1])
    assert total > 0 and abs(total - sum(float(seconds) for _, _, seconds, _ in rows)) < 0.01
