"""The record of bench.compare goes on where it ended, knows what is older than the code, and fills the documents."""

from __future__ import annotations

import json

import pytest

from bench.compare import documents, record, tables
from bench.compare.figures import Spread, dollars_per_million, limits, per_second, rate
from bench.compare.loads import CAPTION, DETECTION, PARTS, tiny
from bench.compare.record import JSON, Record, changed_since, stamp

MACHINE = {"bfloat16_flops": 4e11, "float32_flops": 1e11, "bytes_read": 4e10}


def run(competitor: str, turn: int = 1, seconds: float = 2.0, part: str = "main") -> record.Figures:
    """Return a run of three captions in so many seconds."""
    latencies = {str(CAPTION): [seconds / 3] * 3}
    load = {"load": CAPTION.task, "clients": 1, "seconds": seconds, "latencies": latencies, "tokens": 60}
    key = {"part": part, "competitor": competitor, "round": turn}
    return {**key, **stamp(), "machine": MACHINE, "loads": [load], "memory_mib": 1024.0 * turn, "score": 0.9}


@pytest.fixture
def kept(tmp_path):
    found = Record(tmp_path / "figures.json")
    conditions = dict.fromkeys(("processor", "cores", "python", *tables.VERSIONS), "?")
    found.update(conditions=conditions, work={"flops": 4 * 10**11, "step_bytes": 10**8})
    found.add(run("transformers float32", seconds=6.0))
    found.add(run("this server, default", seconds=2.0))
    found.add(run("this server, default", 2, seconds=3.0))
    return found


def test_a_run_goes_on_where_it_ended(kept):
    """What the file holds counts as measured; what failed does not."""
    again = Record(kept.path)
    assert again.has(("main", "this server, default", 2)) and not again.has(("main", "this server, default", 3))
    again.add({**run("this server, default", 2), "error": "RuntimeError: no"})
    assert not Record(kept.path).has(("main", "this server, default", 2))
    assert len(again.figures["runs"]) == 3


def test_only_this_server_is_older_than_its_code(kept, monkeypatch):
    """Other competitors do not run the code that changed."""
    assert "older than the code" not in tables.age(kept.figures)
    monkeypatch.setattr(record, "fingerprint", lambda folder: "new" if folder == "export" else "")
    theirs, ours, _ = kept.figures["runs"]
    assert changed_since(theirs) == [] and "export" in changed_since(ours)
    assert not kept.has(("main", "this server, default", 1)) and kept.has(("main", "transformers float32", 1))
    assert "`export`" in tables.age(kept.figures) and "older than the code: main" in tables.age(kept.figures)


def test_what_is_missing_or_failed_is_said(kept):
    """An interrupted run still has tables, and says what they lack."""
    planned = [("main", "transformers float32", turn) for turn in (1, 2)] + [("icons", "static batch", 1)]
    kept.update(planned=planned)
    kept.add({"part": "main", "competitor": "compiled", "round": 1, **stamp(), "error": "RuntimeError: no compiler"})
    said = tables.age(Record(kept.path).figures).replace("\n", " ")
    assert "not measured yet: static batch (icons)" in said and "1 repetition" in said
    assert "compiled failed: `RuntimeError: no compiler`" in said
    assert "compiled" not in tables.summary(kept.figures)


def test_repeated_runs_give_a_median_and_a_range(kept):
    """Rates of rounds are kept apart."""
    assert per_second(kept.figures, "this server, default", CAPTION.task, 1) == Spread(1.25, 1.0, 1.5, 2)
    assert rate(kept.figures, "transformers float32", CAPTION.task, 8) == Spread(0.5, 0.5, 0.5, 1)  # a script's
    assert Spread(1.25, 1.0, 1.5, 2).show(2, " s") == "1.25 s (1.00 to 1.50)" and Spread(1, 1, 1, 1).show(1) == "1.0"


def test_a_million_answers_cost_an_hours_price_over_an_hours_answers(kept):
    assert dollars_per_million(kept.figures, 1 / 3.6) == pytest.approx(100)
    kept.update(dollars_an_hour=0.36)
    assert dollars_per_million(kept.figures, 1.0) == pytest.approx(100)


def test_more_clients_share_the_weights_read_for_a_token(kept):
    """The limit rises with the clients and falls with the length of answers."""
    limit = limits(kept.figures)
    assert limit(1, 20) < limit(8, 20) < 1 and limit(8, 100) < limit(8, 20)


def test_tables_name_every_competitor(kept):
    written = [table(kept.figures) for table in (tables.summary, tables.overview, tables.details)]
    for name in ("transformers float32", "this server, default"):
        assert all(f"| {name} |" in table for table in written)
    assert "the machine's limit" in written[0] and "a million captions" in written[1]


def test_the_documents_hold_what_was_measured():
    """`python -m bench.compare --report` writes them; it also notes that code has changed since."""
    measured = json.loads(JSON.read_text(encoding="utf-8"))
    for document in (documents.README, documents.DOCUMENT):
        text = document.read_text(encoding="utf-8")
        assert documents.BLOCK.search(text)
        assert documents.filled(text, measured) == text, "run: python -m bench.compare --report"


def test_a_load_keeps_all_its_clients_busy():
    """It has at least as many requests as clients, and its tiny form has the same name and task."""
    loads = [load for part in PARTS.values() for load in part]
    assert all(load.requests >= len(load.clients) for load in loads)
    assert {kind for load in loads for kind in load.clients} >= {CAPTION, DETECTION}
    for load in loads:
        assert tiny(load).requests <= 8 and tiny(load).clients[0].task == load.clients[0].task
