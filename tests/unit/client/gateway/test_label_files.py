"""Images in Label Studio, against a small one of the test's own."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiohttp import web

from florence2.errors import InvalidImage
from florence2_client.gateway.images import ImageSource
from florence2_client.gateway.label_studio.files import ProjectFiles

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
LEGACY = "0123456789abcdef"
PERSONAL = "header.payload.signature"


class Studio:
    """A server with Label Studio's addresses, which notes who asks for what."""

    def __init__(self):
        self.asked, self.refreshed, self.moved_to = [], 0, ""

    async def file(self, request):
        self.asked.append((request.path_qs, request.headers.get("Authorization")))
        if request.path.startswith("/tasks/") or "moved" in request.path:
            return web.Response(status=302, headers={"Location": self.moved_to})  # aiohttp's own checks the URL
        return web.Response(body=PNG)

    async def refresh(self, request):
        self.refreshed += 1
        if (await request.json()) != {"refresh": PERSONAL}:
            raise web.HTTPUnauthorized
        return web.json_response({"access": "an-access-token"})

    @contextlib.asynccontextmanager
    async def running(self):
        app = web.Application()
        app.router.add_post("/api/token/refresh", self.refresh)
        app.router.add_get("/{path:.*}", self.file)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield "http://{}:{}".format(*runner.addresses[0][:2])
        await runner.cleanup()


def read(studio, *urls, key=LEGACY, known=True, base="/", task=7):
    async def run():
        async with (
            studio.running() as address, ImageSource() as images,
            ProjectFiles(images, f"{address}{base}" if known else "", key) as project,
        ):  # fmt: skip
            return [await project.read(url.replace("STUDIO", address), task) for url in urls]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/upload/1/a.png", "/data/upload/1/a.png"), ("upload/1/a.png", "/data/upload/1/a.png"),
        ("/data/local-files/?d=photos/a%20b.png", "/data/local-files/?d=photos/a%20b.png"),
        ("STUDIO/data/upload/1/a.png", "/data/upload/1/a.png"),
        ("/storage-data/uploaded/?filepath=upload/1/a.png", "/storage-data/uploaded/?filepath=upload/1/a.png"),
    ],
)  # fmt: skip
def test_files_of_label_studio_are_read_with_the_token(url, path):
    studio = Studio()
    assert read(studio, url) == [PNG]
    [(asked, authorization)] = studio.asked
    assert asked.replace("+", "%20") == path and authorization == f"Token {LEGACY}"


def test_a_personal_access_token_is_exchanged_once():
    studio = Studio()
    read(studio, "/data/upload/1/a.png", "/data/upload/1/b.png", key=PERSONAL)
    assert {authorization for _, authorization in studio.asked} == {"Bearer an-access-token"}
    assert studio.refreshed == 1
    with pytest.raises(InvalidImage, match="does not accept the token"):
        read(studio, "/data/upload/1/a.png", key="an.other.token")


def test_cloud_storage_goes_through_the_task_and_leaves_with_no_token():
    studio = Studio()
    studio.moved_to = "/data/upload/1/a.png"
    assert read(studio, "s3://bucket/a.png") == [PNG]
    assert studio.asked[0][0] == "/tasks/7/presign/?fileuri=czM6Ly9idWNrZXQvYS5wbmc%3D"
    for elsewhere in "https://bucket.test/a.png?signature=x", "http://127.0.0.1:1/a.png", "//evil.test/a.png":
        studio.moved_to = elsewhere
        with pytest.raises(InvalidImage):  # the gateway's rules
            read(studio, "s3://bucket/a.png")


@pytest.mark.parametrize(
    "url",
    [
        "/api/projects", "/data/../api/projects", "/data/%2e%2e/api/projects", "/data/%2e%2e%2fapi",
        "STUDIO/user/login", "STUDIO.evil.test/data/a.png", "//evil.test/data/a.png",
        "http://evil.test/data/a.png", "/data:99999/a.png",
        "file:///etc/passwd", "", "/etc/passwd", "relative.png", "STUDIO@evil.test/data/a.png", "/moved",
    ],
)  # fmt: skip
def test_nothing_else_is_asked_of_label_studio_or_with_its_token(url):
    studio = Studio()
    with pytest.raises(InvalidImage):
        read(studio, url)
    assert studio.asked == []


def test_redirects_end_and_stay_among_the_files():
    studio = Studio()
    for place in "/api/projects", "/data/moved/b.png", "", "http://[::1":
        studio.moved_to = place
        with pytest.raises(InvalidImage):
            read(studio, "/data/moved/a.png")
    assert not any(path.startswith("/api") for path, _ in studio.asked)


@pytest.mark.parametrize("url", ["STUDIO/ls/../data/a.png", "/../data/a.png", "/%2e%2e/data/a.png"])
def test_the_token_stays_below_label_studios_own_path(url):
    studio = Studio()
    assert read(studio, "/data/a.png", "STUDIO/ls/data/a.png", base="/ls") == [PNG, PNG]
    with pytest.raises(InvalidImage):
        read(studio, url, base="/ls")
    assert {path for path, _ in studio.asked} == {"/ls/data/a.png"}


@pytest.mark.parametrize("task", [None, "..", "a/b", "\ud800", {"id": 1}])
def test_a_task_with_another_id_leads_nowhere_else(task):
    studio = Studio()
    with pytest.raises(InvalidImage):
        read(studio, "s3://bucket/a.png", task=task)
    assert all(path.startswith("/tasks/") for path, _ in studio.asked)


def test_without_an_address_there_are_no_files():
    studio = Studio()
    for url in "/data/upload/1/a.png", "upload/1/a.png", "gs://bucket/a.png":
        with pytest.raises(InvalidImage, match="--label-studio"):
            read(studio, url, known=False)


def test_a_file_has_the_limits_of_every_image(monkeypatch):
    monkeypatch.setattr("florence2_client.gateway.images.MOST_BYTES", 50)
    with pytest.raises(InvalidImage, match="larger"):
        read(Studio(), "/data/upload/1/a.png")
