"""Fetch the image of a request: from a `data:` URL, or from a host on the allow-list.

Clients choose the URL, so the gateway must not be led into the network that it stands in: it fetches only `https` URLs
of hosts that its operator named, connects only to addresses of the internet, and checks every redirect again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from florence2 import __version__
from florence2.errors import InvalidImage
from florence2.images import encoded_image
from florence2_client.download import MOST_BYTES, MOST_SECONDS, MOST_SILENCE, is_of_the_internet, shortened

MOST_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
MOST_FETCHES = 32  # at the same time; others wait


class _CheckedResolver(AbstractResolver):
    """Resolve hosts to permitted addresses only. The connection goes to what was checked, not to a second answer."""

    def __init__(self, permitted: Callable[[str], bool]) -> None:
        self._permitted = permitted
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(self._permitted(entry["host"]) for entry in found):
            raise InvalidImage(f"{host} is in a private network")
        return found

    async def close(self) -> None:
        await self._resolver.close()


class ImageSource:
    """Read images by URL. Open it in the event loop that uses it.

    `hosts`: those that may be fetched from: `name`, `name:port`, or `*.name` for all below a name. By default there are
    none.
    `permitted`: whether an IP address may be connected to.
    """

    def __init__(
        self, hosts: Collection[str] = (), *, permitted: Callable[[str], bool] = is_of_the_internet,
        connector: Callable[..., aiohttp.BaseConnector] = aiohttp.TCPConnector,
    ) -> None:  # fmt: skip
        self._hosts = {host.lower() for host in hosts}
        self._permitted = permitted
        self._connector = connector
        self._places = asyncio.Semaphore(MOST_FETCHES)

    async def __aenter__(self) -> ImageSource:
        self._session = aiohttp.ClientSession(
            connector=self._connector(resolver=_CheckedResolver(self._permitted), use_dns_cache=False),
            timeout=aiohttp.ClientTimeout(total=MOST_SECONDS, sock_connect=MOST_SILENCE, sock_read=MOST_SILENCE),
            headers={"User-Agent": f"florence2-triton/{__version__}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would resolve hosts by itself
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def read(self, url: str) -> bytes:
        """Return the encoded image. Raise InvalidImage if the URL is of another kind, not allowed, or leads nowhere."""
        if url[:5].lower() == "data:":
            return encoded_image(url.encode("utf-8", "replace"))
        for _ in range(MOST_REDIRECTS + 1):
            self._require_allowed(url)
            async with self._places:
                found = await fetch(self._session, url)
            if isinstance(found, bytes):
                return found
            url = found
        raise InvalidImage(f"{shortened(url)} redirects too often")

    def _require_allowed(self, url: str) -> None:
        name = shortened(url)
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or 443
        except ValueError as error:  # a port above 65535, or half an IPv6 address
            raise InvalidImage(f"{name} is not the URL of an image") from error
        if parts.scheme.lower() != "https" or not host or parts.username is not None or not url.isprintable():
            raise InvalidImage("an image is given as a data: URL" + (", or as an https:// URL" if self._hosts else ""))
        parents = [f"*.{host.split('.', count)[-1]}" for count in range(1, host.count(".") + 1)]
        allowed = {f"{pattern}:443": pattern for pattern in self._hosts if ":" not in pattern}
        if not any(f"{pattern}:{port}" in {*allowed, *self._hosts} for pattern in (host, *parents)):
            remedy = f"allowed hosts: {', '.join(sorted(self._hosts))}" if self._hosts else "send it as a data: URL"
            raise InvalidImage(f"images are not fetched from {host}; {remedy}")
        try:
            literal = self._permitted(host)  # an IP address is not resolved, so nothing else would check it
        except ValueError:
            return
        if not literal:
            raise InvalidImage(f"{host} is in a private network")


async def fetch(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None) -> bytes | str:
    """Return the content, or the URL that it redirects to. Raise InvalidImage if it is too large, or not fetched."""
    name = shortened(url)
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status in REDIRECTS:
                return urljoin(url, response.headers.get("Location", ""))
            if response.status != 200:
                raise InvalidImage(f"{name} was answered with HTTP status {response.status}")
            data = bytearray()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > MOST_BYTES:
                    raise InvalidImage(f"{name} is larger than {MOST_BYTES >> 20} MiB")
            return bytes(data)
    except asyncio.TimeoutError as error:
        raise InvalidImage(f"{name} cannot be fetched: timed out") from error
    except (OSError, ValueError, aiohttp.ClientError) as error:
        reason = getattr(getattr(error, "os_error", error), "strerror", None) or type(error).__name__
        raise InvalidImage(f"{name} cannot be fetched: {reason}") from error
