"""`florence2 mcp`: the tasks as tools for agents, over standard input and output or over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path

from florence2.errors import InvalidRequest
from florence2_client.async_client import AsyncClient
from florence2_client.cli.arguments import (
    FILES,
    add_connection,
    add_listening,
    connection,
    needing_extra,
    require_with,
)
from florence2_client.cli.gateway import add_access, keys_of

EXAMPLES = """\
examples:
  claude mcp add florence2 -- florence2 mcp            an agent starts it by itself, on this machine
  florence2 mcp --http --port 8090                      then give agents http://127.0.0.1:8090/mcp

Needs the `mcp` extra: pip install 'florence2-triton[mcp]'
"""
DRAIN_SECONDS = 10
ONLY_OVER_HTTP = (
    "--host", "--port", "--api-key", "--api-key-file", "--requests-per-minute", "--concurrency", "--max-body-mib",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Offer the tasks to agents as tools of the Model Context Protocol (MCP)."
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    parser.add_argument(
        "--http", action="store_true", help="listen on --host and --port (default: standard input and output)"
    )
    add_listening(parser, 8090)
    access = add_access(parser)
    files = access.add_argument(
        "--allow-files-from", action="append", type=Path, metavar="DIR",
        help="let agents name files below this folder; repeatable (default: none over HTTP, otherwise every file)",
    )  # fmt: skip
    files.complete = FILES
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until the agent leaves, Ctrl-C or SIGTERM; return the exit code."""
    require_with(options, ONLY_OVER_HTTP, "--http")
    with needing_extra("MCP", "mcp"):
        from florence2_client.gateway.tools import Toolbox
    files: list[Path] | None = options.allow_files_from or ([] if options.http else None)
    for folder in files or ():
        if not folder.is_dir():
            raise InvalidRequest(f"--allow-files-from {folder} is not a directory")
    toolbox = Toolbox(AsyncClient(**connection(options)), options.allow_images_from, files, options.timeout)
    if not options.http:
        toolbox.server().run("stdio")
        return 0
    from florence2_client.gateway.access import Guard, Limits
    from florence2_client.gateway.server import Front

    front = Front(options.host, options.port, drain_seconds=DRAIN_SECONDS)
    keys = keys_of(options)
    if not keys and not front.is_loopback:
        print(f"no API keys: every client that can reach {options.host} can send requests", flush=True)
    limits = Limits(options.requests_per_minute, options.concurrency, options.max_body_mib << 20)
    print(f"Agents find the tools at {front.url}/mcp until Ctrl-C; requests go to {options.url}.", flush=True)
    return front.run(Guard(toolbox.http_app(options.host, limits.body_bytes), keys, limits))
