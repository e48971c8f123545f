r"""Read tritonserver's log line by line and keep what a user should see.

Lines look like `E1122 04:29:36.964754 6808 model_lifecycle.cc:642] "failed to load 'm' version 1: Internal: reason"`,
with the message quoted, and \n and \" escaped. Lines without such a head come from the models or are rows of tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

HEAD = re.compile(r"(?P<level>[IWEF])\d{4} [\d:.]+ +\d+ \S+:\d+\] *(?P<message>.*)")
LOADING = re.compile(r"loading: (?P<model>.+):\d+$")
LOADED = re.compile(r"successfully loaded '(?P<model>.+)'$")
LISTENING = re.compile(r"Started (HTTP|GRPCInference)Service at ")
FAILED = re.compile(r"failed to load '(?P<model>.+?)' version \d+: (?:Internal: )?(?P<reason>.*)", re.DOTALL)
POLL_FAILED = re.compile(r"Poll failed for model directory '(?P<model>.+?)': (?P<reason>.*)", re.DOTALL)

# Logged on every machine without an NVIDIA driver, or when a client keeps an idle connection open while the server
# stops.
HARMLESS = (
    "CudaDriverHelper has not been initialized",
    "Unable to allocate pinned system memory",
    "failed to allocate pinned system memory",
    "Failed to initialize NVML",
    "unable to create stream for ",
    "DCGM unable to start",
    "Exit timeout expired",
)
# Another line reports these better.
REPEATED = ("ERROR: Failed to create instance", "which has no loaded version", "that are not available or ambiguous")
# Tables of settings, empty lines, and tracebacks that the failure itself repeats.
NOISE = re.compile(r"[+|]|$|Signal \(|error: creating server: |At:$|  .+\(\d+\): \S+$")
DEAD_STUB = re.compile(r"Stub process '\S+' is not healthy")


@dataclass
class LogReader:
    """Reads the log and collects why models could not be loaded."""

    failures: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # only the last one
    listening: bool = False  # clients can send requests

    def read(self, line: str) -> str | None:
        """Return what to show of a line, or None for nothing."""
        line = line.rstrip()
        head = HEAD.match(line)
        if head is None:
            return None if NOISE.match(line) else line
        message = head["message"]
        if len(message) > 1 and message[0] == message[-1] == '"':
            escapes = {"n": "\n", "t": "\t", "r": "\r"}
            message = re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[1]), message[1:-1])
        if head["level"] != "I":
            return self._read_problem(message)
        if match := LOADING.match(message):
            return f"{match['model']}: loading"
        if match := LOADED.match(message):
            return f"{match['model']}: ready"
        self.listening = self.listening or LISTENING.match(message) is not None
        return None

    def _read_problem(self, message: str) -> str | None:
        if any(phrase in message for phrase in HARMLESS + REPEATED):
            return None
        match = FAILED.match(message) or POLL_FAILED.match(message)
        if match is None:
            self.errors[:] = [message]
            return message
        reason, _, traceback = match["reason"].partition("\n\nAt:\n")
        if DEAD_STUB.match(reason):
            reason = "its process died, perhaps because memory ran out"
        self.failures.append(f"{match['model']} cannot be loaded: {' '.join(reason.split())}")
        return f"{match['model']}: failed\n{traceback}".rstrip()
