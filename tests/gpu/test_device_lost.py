"""A CUDA error that stays: the requests inside are answered, and the decoder's process ends, to be started again.

On a CPU the error does not stay, so the program says that it does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import argparse, sys, threading
import torch
from bench.decode import random_weights
from bench.gpu.harness import engine_of, geometry, random_request
from florence2.engine.backend import DeviceLost
from florence2.engine.sender import Job
from florence2.engine.worker import Worker

device = sys.argv[1]
options = argparse.Namespace(device=device, small=True)
config = geometry(options)
engine = engine_of(random_weights(config), config, options)
step = engine.backend.step

def break_device(searches, spans):
    if spans[0].position > 3:
        torch.zeros(1, device=device)[torch.tensor([5], device=device)].item()  # on a GPU an assertion of the device
    return step(searches, spans)

def lost():
    raise DeviceLost("as on a GPU")

if device == "cpu":
    engine.backend.check_device = lost
engine.backend.step = break_device
worker = Worker(engine)
request = random_request(config, 1, num_beams=3, max_new_tokens=20)
worker.submit(Job(request, lambda outcome: print(repr(outcome), flush=True)))
threading.Event().wait(120)
"""


def test_it_ends_the_process_after_the_answers(device):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, device], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "InternalError" in done.stdout
    assert "DeviceLost" in done.stderr
