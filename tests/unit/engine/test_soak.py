"""A short form of the engine's soak in tests/stress, which sends 100,000 requests."""

from __future__ import annotations

import logging

from bench.harness import Usage, grown
from tests.stress.soak import EngineSoak


def test_nothing_grows_in_a_short_soak(caplog):
    caplog.set_level(logging.CRITICAL, "florence2")  # pytest keeps logged tracebacks, and with them the requests
    assert EngineSoak().run(400, slack=64) == []  # torch's buffers for each shape come in the first thousand requests


def test_what_grew_is_named():
    first = Usage(memory=100, shared=0, threads=4, descriptors=6)
    assert grown(first, first._replace(descriptors=7, memory=110), Usage(16, 0, 0, 0)) == ["descriptors"]
