"""The load programs run, and what they say is true; the figures they are for are measured by hand."""

import argparse
import asyncio
import base64
import json
import logging
import re
from collections import Counter
from pathlib import Path

from bench import capacity, load, perf_inputs, soak, soak_live


def test_nothing_grows_in_a_short_soak(capsys, caplog, monkeypatch):
    """The long one is `python -m bench.soak`: 100,000 requests."""
    monkeypatch.setattr(soak, "MEMORY_SLACK", 2**26)  # torch's buffers per shape come one by one in the first thousand
    caplog.set_level(logging.CRITICAL, "florence2")  # pytest keeps what is logged, with the requests in its tracebacks
    assert soak.EngineSoak().run(400) == 0
    assert "nothing grew" in capsys.readouterr().out


def test_a_watch_tells_what_grew():
    """One descriptor a request is too many."""
    usage = soak.Usage(2**30, 4, 6, 1000)
    watch = soak.Watch(10, lambda: usage)
    for done in range(1, 11):
        usage = usage._replace(descriptors=6 + done)
        watch.at(done)
    assert watch.verdict() == 1


def test_open_loop_load_reports_what_it_sent(server):
    """A mix of two tasks through the ensemble: every request has an outcome, every task its latencies."""

    async def measure():
        async with load.Caller(server.grpc_url, beams=1) as caller:
            return await load.run(caller, load.parse_mix("caption:4=0.5,od:8=0.5"), rate=30, seconds=1)

    report = asyncio.run(measure())
    counts = {name: latency["count"] for name, latency in report["latency"].items()}
    assert sum(report["outcomes"].values()) == sum(counts.values()) >= 10
    assert set(counts) == {"caption:4", "od:8"}
    assert all(0 < latency["p50"] <= latency["p99"] for latency in report["latency"].values())


def test_the_decoder_can_be_loaded_alone(server):
    """Random features in place of preprocess and encoder."""

    async def measure():
        async with load.Caller(server.grpc_url, "florence2_decoder", beams=3) as caller:
            return await load.run(caller, load.parse_mix("caption:4"), rate=20, seconds=0.5)

    assert set(asyncio.run(measure())["outcomes"]) <= {"stop", "length"}


def test_a_mixed_soak_has_an_outcome_for_everybody(server):
    """Every kind of caller, good, hostile and fickle; the long one is an hour of `python -m bench.soak_live`."""

    async def everybody() -> Counter[str]:
        callers = soak_live.Callers(server.grpc_url, server.http_url)
        await callers.remember()
        try:
            return await soak_live.soak(callers, seconds=4, rate=10, tell=lambda counts: None, every=1)
        finally:
            await callers.close()

    counts = asyncio.run(everybody())
    assert counts.total() > 10
    assert not [outcome for outcome in counts if outcome.startswith("WRONG")]


def test_perf_analyzer_gets_pictures_as_they_go_over_the_wire(capsys, monkeypatch):
    """BYTES have their length before them; every picture goes with every task."""
    monkeypatch.setattr("sys.argv", ["perf_inputs", __file__, "--tasks", "od,caption", "--max-new-tokens", "9"])
    assert perf_inputs.main() == 0
    rows = json.loads(capsys.readouterr().out)["data"]
    assert [row["TASK"] for row in rows] == [["<OD>"], ["<CAPTION>"]]
    assert all(row["MAX_NEW_TOKENS"] == [9] for row in rows)
    wire, picture = base64.b64decode(rows[0]["IMAGE"]["b64"]), Path(__file__).read_bytes()
    assert wire == len(picture).to_bytes(4, "little") + picture


def test_the_cost_of_a_request_is_told_by_stage(server, capsys):
    """Processor seconds of every stage add up to the request's, and all processes have memory."""
    options = argparse.Namespace(mix=load.parse_mix("caption:4"), requests=6, in_flight=3, beams=1)
    asyncio.run(capacity.measure(server, options))
    printed = capsys.readouterr().out
    rows = re.findall(r"^(florence2_\w+|tritonserver) +(\d) +([\d.]+) +(\d+)$", printed, re.M)
    assert {"florence2_vision", "florence2_decoder", "tritonserver"} <= {name for name, *_ in rows}
    assert all(int(memory) > 0 for *_, memory in rows)
    total = float(re.search(r"^([\d.]+) processor seconds a request; .*'(?:length|stop)'", printed, re.M)[1])
    assert total > 0 and abs(total - sum(float(seconds) for _, _, seconds, _ in rows)) < 0.01
