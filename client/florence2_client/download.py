"""Fetch an image from an address on the web, for the user of the library: the server fetches nothing."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from typing import IO
from urllib.parse import urlsplit

from florence2 import __version__
from florence2.errors import InvalidImage
from florence2.formats import found_format

MOST_BYTES = 64 * 2**20
MOST_SECONDS = 60.0
MOST_SILENCE = 10.0  # seconds to connect, and between two pieces
PIECE = 1 << 16
LONGEST_SHOWN = 120  # characters
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses for networks that have only IPv6


def shortened(text: str) -> str:
    """Return a path or URL for a message: no longer than a line, and without the query, which may hold a key."""
    text = text.partition("?")[0] if "://" in text[:20] else text
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def is_of_the_internet(address: str) -> bool:
    """Return whether an IP address is neither private, nor this machine, nor reserved.

    >>> is_of_the_internet("8.8.8.8"), is_of_the_internet("10.0.0.1"), is_of_the_internet("::ffff:127.0.0.1")
    (True, False, False)
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in NAT64:
            inner = ipaddress.IPv4Address(parsed.packed[-4:])
        if inner is not None:
            return is_of_the_internet(str(inner))
    return parsed.is_global and not parsed.is_multicast


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a few redirects to other web addresses, but none from the internet into a private network."""

    max_redirections = 5

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if _is_private(newurl) and not _is_private(req.full_url):
            raise InvalidImage(f"{shortened(req.full_url)} redirects to an address in a private network")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_private(url: str) -> bool:
    """Return whether a URL leads to an address that is not of the internet. An unknown host does not."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None)
    except (OSError, UnicodeError):
        return False
    return not all(is_of_the_internet(str(entry[4][0])) for entry in found)


def download(url: str) -> bytes:
    """Return what an http or https URL leads to, at most 64 MiB, within a minute. Raise InvalidImage otherwise.

    Proxies are taken from the environment, as usual for the web.
    """
    name, deadline = shortened(url), time.monotonic() + MOST_SECONDS
    opener = urllib.request.build_opener(_Redirects)
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0 and not parts.username and url.isprintable() and " " not in url
    except ValueError:  # a port above 65535, or half an IPv6 address
        usable = False
    if not usable:
        raise InvalidImage(f"{name} is not the URL of an image; use a form such as https://host/image.jpg")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"florence2-triton/{__version__}"})
        with opener.open(request, timeout=MOST_SILENCE) as response:
            data = bytearray()
            while piece := response.read1(PIECE):
                data += piece
                if len(data) > MOST_BYTES:
                    raise InvalidImage(f"{name} is larger than {MOST_BYTES >> 20} MiB; download it first")
                if time.monotonic() > deadline:
                    raise InvalidImage(f"{name} takes longer than {MOST_SECONDS:.0f} seconds; download it first")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 400:
            raise InvalidImage(f"{name} was answered with HTTP status {error.code}") from error
        where = "too often" if "loop" in str(error) else "to an address that is not on the web"
        raise InvalidImage(f"{name} redirects {where}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InvalidImage(f"{name} cannot be fetched: {_reason(error)}") from error
    if not data:
        raise InvalidImage(f"{name} is empty (0 bytes)")
    if (kind := found_format(bytes(data[:4096]))) in ("an HTML page", "an XML document", "JSON or other text"):
        raise InvalidImage(f"{name} is {kind}, not an image")
    return bytes(data)


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return "unknown host"
    if isinstance(cause, TimeoutError):
        return "timed out"
    if "CERTIFICATE_VERIFY_FAILED" in str(cause):
        return "its certificate is not trusted"
    return str(getattr(cause, "strerror", None) or cause).partition("\n")[0][:LONGEST_SHOWN].lower()
