"""Progress and errors in tritonserver's log are shown, harmless noise is not. Triton 2.51.0 wrote these lines."""

from __future__ import annotations

import time

import pytest

from florence2.server.log import LogReader

HEAD = "1122 04:28:10.405678 6264 server.cc:241] "


@pytest.mark.parametrize(
    "line",
    [
        f'E{HEAD}"CudaDriverHelper has not been initialized."',
        f'W{HEAD}"Unable to allocate pinned system memory, pinned memory pool will not be available: CUDA driver"',
        f'E{HEAD}"unable to create stream for ensemble: CUDA driver version is insufficient for CUDA runtime version"',
        f'W{HEAD}"failed to allocate pinned system memory: no pinned memory pool, falling back"',
        f'I{HEAD}"Started HTTPService at 127.0.0.1:8000"',
        f"I{HEAD}",
        "+-------------+---------+--------+",
        "| Model       | Version | Status |",
        "",
        "Signal (15) received.",
        "error: creating server: Internal - failed to load all models",
    ],
)
def test_noise_is_dropped(line):
    """Drop tables, and what tritonserver logs on every machine without a GPU."""
    assert LogReader().read(line + "\n") is None


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f'I{HEAD}"loading: florence2_decoder:1"', "florence2_decoder: loading"),
        (f"I{HEAD}\"successfully loaded 'florence2_decoder'\"", "florence2_decoder: ready"),
        (f'W{HEAD}"disk is slow"', "disk is slow"),
        (f'E{HEAD}"say \\"no\\"\\tC:\\\\n\\nand go"', 'say "no"\tC:\\n\nand go'),
        ("a model printed this", "a model printed this"),
    ],
)
def test_progress_problems_and_the_models_output_are_shown(line, shown):
    """Show messages without Triton's head, quotes and escapes."""
    assert LogReader().read(line + "\n") == shown


def test_failure_has_its_reason_in_one_line_and_its_traceback_separately():
    """The reason goes into the sentence of our error; the traceback is shown before it."""
    log = LogReader()
    shown = log.read(
        f'E{HEAD}"failed to load \'decoder\' version 1: Internal: ValueError: \\"x\\" is\\nbroken\\n\\n'
        'At:\\n  /repository/decoder/1/model.py(34): initialize\\n"\n'
    )
    assert log.failures == ['decoder cannot be loaded: ValueError: "x" is broken']
    assert shown == "decoder: failed\n  /repository/decoder/1/model.py(34): initialize"


def test_failures_are_collected_and_their_consequences_are_not():
    """An ensemble that lacks a model is not a second failure."""
    log = LogReader()
    log.read(f"E{HEAD}\"Poll failed for model directory 'decoder': failed to read text proto from /r/config.pbtxt\"")
    log.read(f"E{HEAD}\"Invalid argument: ensemble 'e' depends on 'decoder' which has no loaded version. Model ...\"")
    assert log.failures == ["decoder cannot be loaded: failed to read text proto from /r/config.pbtxt"]
    assert log.errors == []


@pytest.mark.parametrize("service", ["HTTPService at 127.0.0.1:8000", "GRPCInferenceService at 127.0.0.1:8001"])
def test_the_log_tells_when_clients_can_send_requests(service):
    """Later deaths may be the doing of a client."""
    log = LogReader()
    log.read(f"I{HEAD}\"successfully loaded 'florence2_decoder'\"")
    assert not log.listening
    log.read(f'I{HEAD}"Started {service}"')
    assert log.listening


@pytest.mark.parametrize(
    "line", ["1 " * 1_000_000, "a:1:" * 500_000, "loading: " + ":1" * 1_000_000, "(1): " * 400_000]
)
@pytest.mark.parametrize("head", ["", f"I{HEAD}", f'E{HEAD}"', f"E{HEAD}failed to load '", "  ", "E1122 1:1 1 "])
def test_no_line_takes_long(line, head):
    """The patterns are linear, whatever a model prints."""
    start = time.thread_time()
    LogReader().read(head + line)
    assert time.thread_time() - start < 1
