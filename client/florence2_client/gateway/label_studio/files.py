"""Read the images of Label Studio's tasks: uploaded files, local files and cloud storage, through its own API.

The gateway's operator names Label Studio's address, so it may be in a private network. The gateway's rules apply to all
other addresses.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from florence2.errors import InvalidImage, InvalidRequest
from florence2_client.download import MOST_SECONDS, MOST_SILENCE, shortened
from florence2_client.gateway.images import MOST_REDIRECTS, ImageSource, fetch

CLOUD = ("s3://", "gs://", "azure-blob://", "azure_blob://")
FILES = ("/data/", "/storage-data/", "/tasks/")  # below the address of Label Studio
ADDRESS = re.compile(r"https?://[^/\s?#@]+(/[^\s?#]*)?")
ACCESS_SECONDS = 120.0  # that an access token is used; it is valid for five minutes


def require_address(url: str) -> None:
    """Raise InvalidRequest if this cannot be the address of Label Studio. An empty text means that there is none."""
    if url and not ADDRESS.fullmatch(url):
        raise InvalidRequest(f"the address of Label Studio must begin with http:// or https://, not {url[:80]!r}")


class ProjectFiles:
    """Reads images like `ImageSource`, and those of Label Studio. Open it in the event loop that uses it."""

    def __init__(self, images: ImageSource, url: str = "", api_key: str = "") -> None:
        """Take the URL of Label Studio and, as `api_key`, a legacy or personal access token of one of its users."""
        self._images = images
        self._base = url.rstrip("/")
        self._api_key = api_key
        self._access: tuple[float, str] | None = None

    async def __aenter__(self) -> ProjectFiles:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=MOST_SECONDS, sock_connect=MOST_SILENCE, sock_read=MOST_SILENCE),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def read(self, url: str, task_id: Any = None) -> bytes:
        """Return the encoded image that a task's data names. Raise InvalidImage if it cannot or must not be read."""
        place = self._place(url, task_id)
        if place is None:
            return await self._images.read(url)
        for _ in range(MOST_REDIRECTS + 1):
            found = await fetch(self._session, str(place), await self._credentials())
            if isinstance(found, bytes):
                return found
            if not self._is_below(found):  # such as a signed URL of the cloud
                return await self._images.read(found)
            place = self._permitted(found)
        raise InvalidImage(f"{shortened(url)} redirects too often")

    def _place(self, url: str, task_id: Any) -> URL | None:
        """Return the URL of an image in Label Studio, or None if the image is somewhere else."""
        path = f"/data/{url}" if url.startswith("upload/") else url
        if url.startswith(CLOUD):
            encoded = base64.urlsafe_b64encode(url.encode("utf-8", "replace")).decode()
            path = f"/tasks/{quote(str(task_id), safe='', errors='replace')}/presign/?fileuri={quote(encoded)}"
        elif self._is_below(url):
            path = url[len(self._base) :]
        elif not path.startswith("/") or path.startswith("//"):
            return None
        if not self._base:
            raise InvalidImage(
                "the image is in Label Studio, whose address the gateway does not know; start it with --label-studio "
                "URL, and a token in LABEL_STUDIO_API_KEY"
            )
        return self._permitted(f"{self._base}{path}")

    def _is_below(self, url: str) -> bool:
        return bool(self._base) and url.startswith(f"{self._base}/")

    def _permitted(self, url: str) -> URL:
        try:
            place = URL(url)
            own = URL(self._base).path.rstrip("/")
        except ValueError as error:
            raise InvalidImage(f"{shortened(url)} is not the URL of an image") from error
        if not place.path.startswith(tuple(own + path for path in FILES)) or ".." in place.path.split("/"):
            raise InvalidImage("the image is not among the files of Label Studio's tasks")
        return place

    async def _credentials(self) -> dict[str, str]:
        """Return the header with the token. Exchange a personal access token, which is a refresh token, first."""
        if self._api_key.count(".") != 2:
            return {"Authorization": f"Token {self._api_key}"} if self._api_key else {}
        if self._access is None or time.monotonic() - self._access[0] > ACCESS_SECONDS:
            try:
                async with self._session.post(
                    f"{self._base}/api/token/refresh", json={"refresh": self._api_key}, allow_redirects=False
                ) as response:
                    access = (await response.json(content_type=None))["access"] if response.status == 200 else None
            except (asyncio.TimeoutError, OSError, ValueError, TypeError, KeyError, aiohttp.ClientError):
                access = None
            if not isinstance(access, str):
                raise InvalidImage("Label Studio does not accept the token of the gateway")
            self._access = (time.monotonic(), access)
        return {"Authorization": f"Bearer {self._access[1]}"}
