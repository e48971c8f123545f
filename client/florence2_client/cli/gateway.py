"""`florence2 gateway`: OpenAI's API in front of a server, in the foreground until Ctrl-C."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2.errors import InvalidRequest
from florence2.server.options import ServingOptions
from florence2_client.cli.arguments import (
    FILES,
    Once,
    add_connection,
    add_listening,
    connection,
    needing_extra,
    number,
    require_with,
    require_without,
)
from florence2_client.cli.serve import run_server
from florence2_client.request import LONGEST_TIMEOUT

if TYPE_CHECKING:
    from starlette.types import ASGIApp

EXAMPLES = """\
examples:
  florence2 gateway --serve                              the embedded server and the gateway in one command
  florence2 gateway --url grpc://gpu-box:8001 --host 0.0.0.0 --api-key-file keys.txt
  OPENAI_BASE_URL=http://127.0.0.1:8080/v1 python your_program.py

Needs the `gateway` extra: pip install 'florence2-triton[gateway]'
"""
KEYS_VARIABLE = "FLORENCE2_API_KEYS"
MOST_BODY_MIB = 1024
LEAST_RATE = 0.001  # requests per minute: one in some seventeen hours
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+")
IMAGE_HOST = re.compile(r"(\*\.)?(\w[\w.-]*|\[[0-9a-fA-F:.]+\])(:\d+)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Serve OpenAI's chat API (/v1/chat/completions) for Florence-2 until Ctrl-C."
    parser.epilog = EXAMPLES
    parser.set_defaults(command=run)
    add_listening(parser, 8080)
    parser.add_argument(
        "--drain-seconds", type=number(int, 0, LONGEST_TIMEOUT), default=30, metavar="S",
        help="time for running requests to finish when the gateway is stopped (default: %(default)s)",
    )  # fmt: skip
    access = add_access(parser)
    access.add_argument(
        "--cors-origin", action="append", type=_origin, default=[], metavar="ORIGIN",
        help="let pages of this origin send requests from browsers, such as https://example.com; repeatable",
    )  # fmt: skip
    access.add_argument(
        "--label-studio", action=Once, default=os.environ.get("LABEL_STUDIO_URL", ""), metavar="URL",
        help="read the images of this Label Studio's tasks, with the token in LABEL_STUDIO_API_KEY\n"
        "(default: the variable LABEL_STUDIO_URL)",
    )  # fmt: skip
    access.add_argument("--no-access-log", action="store_true", help="do not print a line for each request")
    serving = parser.add_argument_group("embedded server")
    serving.add_argument("--serve", action="store_true", help="start the embedded server too, on free local ports")
    serving.add_argument(
        "--repository", type=Path, default=ServingOptions.repository, metavar="DIR",
        help="what --serve serves (default: %(default)s)",
    )  # fmt: skip
    add_connection(parser)


def add_access(parser: argparse.ArgumentParser) -> Any:
    """Add the options that say who may send what, and return their group."""
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help="a key that clients must send; repeatable. Other users of this machine can see it, but not keys in the\n"
        f"variable {KEYS_VARIABLE} (separated by commas) or in --api-key-file",
    )  # fmt: skip
    keys = access.add_argument(
        "--api-key-file", action="append", type=Path, default=[], metavar="FILE",
        help="a file with a key on each line; repeatable",
    )  # fmt: skip
    keys.complete = FILES  # type: ignore[attr-defined]
    access.add_argument(
        "--requests-per-minute", type=number(float, LEAST_RATE), metavar="N",
        help="limit for each key (default: no limit)",
    )  # fmt: skip
    access.add_argument(
        "--concurrency", type=number(int, 1), metavar="N", help="running requests for each key (default: no limit)"
    )
    access.add_argument(
        "--max-body-mib", type=number(int, 1, MOST_BODY_MIB), default=64, metavar="MIB",
        help="largest request (default: %(default)s)",
    )  # fmt: skip
    access.add_argument(
        "--allow-images-from", action="append", type=_image_host, default=[], metavar="HOST",
        help="also fetch images from https URLs of this host, or with *.HOST of all hosts below it; repeatable\n"
        "(default: only data: URLs)",
    )  # fmt: skip
    return access


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, and then until running requests are answered; return the exit code."""
    require_with(options, ["--repository"], "--serve")
    require_without(options, ["--url", "--header", "--ca"], "--serve")
    with needing_extra("the gateway", "gateway"):
        from florence2_client.gateway.access import Limits
        from florence2_client.gateway.app import GatewayOptions, make_app
        from florence2_client.gateway.label_studio.files import require_address
        from florence2_client.gateway.observe import print_line
        from florence2_client.gateway.server import Front
    require_address(options.label_studio)
    where = connection(options)
    gateway = GatewayOptions(
        url=where["url"],
        models=(where["model"],),
        headers=where["headers"],
        tls=where["tls"],
        keys=keys_of(options),
        limits=Limits(options.requests_per_minute, options.concurrency, options.max_body_mib << 20),
        image_hosts=tuple(options.allow_images_from),
        origins=tuple(options.cors_origin),
        label_studio=(options.label_studio, os.environ.get("LABEL_STUDIO_API_KEY", "")),
        timeout=options.timeout,
    )
    front = Front(options.host, options.port, options.drain_seconds)
    if not gateway.keys and not front.is_loopback:
        print(f"no API keys: every client that can reach {options.host} can send requests", flush=True)
    log = None if options.no_access_log else print_line

    def announced(url: str) -> ASGIApp:
        app = make_app(dataclasses.replace(gateway, url=url), log)
        print(f"The gateway is at {front.url}/v1 until Ctrl-C; its requests go to {url}.", flush=True)
        return app

    if not options.serve:
        return front.run(announced(gateway.url))
    serving = ServingOptions.on_free_ports(options.repository, stream=True)
    return run_server(serving, lambda url: front.running(announced(url)))


def keys_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return all keys that were given. Raise InvalidRequest if a place for keys holds none, or one cannot be sent."""
    variable = os.environ.get(KEYS_VARIABLE, "")
    for place, given in (("--api-key", options.api_key), (KEYS_VARIABLE, variable.split(",") if variable else [])):
        if given and not any(map(str.strip, given)):
            raise InvalidRequest(f"{place} holds no key")
    keys = [*options.api_key, *variable.split(",")]
    for file in options.api_key_file:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidRequest(f"--api-key-file {file} cannot be read: {reason}") from error
        if not any(map(str.strip, lines)):
            raise InvalidRequest(f"--api-key-file {file} holds no key")
        keys += lines
    found = tuple(dict.fromkeys(filter(None, (key.strip() for key in keys))))
    if any(not (key.isascii() and key.isprintable()) or " " in key for key in found):
        raise InvalidRequest("an API key must consist of printable ASCII characters without spaces")
    return found


def _origin(text: str) -> str:
    if not ORIGIN.fullmatch(text):
        raise InvalidRequest(f"--cors-origin takes an origin such as https://example.com, not {text!r}")
    return text


def _image_host(text: str) -> str:
    if not IMAGE_HOST.fullmatch(text):
        raise InvalidRequest(f"--allow-images-from takes a host such as example.com or *.example.com, not {text!r}")
    return text
