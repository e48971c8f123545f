"""Which URLs are fetched, against a small server of the test's own."""

from __future__ import annotations

import asyncio
import base64
import functools
import shutil
import ssl
import subprocess

import aiohttp
import pytest
from aiohttp import web

from florence2.errors import InvalidImage
from florence2_client.gateway import images
from florence2_client.gateway.images import ImageSource, is_of_the_internet

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def read(url, hosts=(), **options):
    async def fetch():
        async with ImageSource(hosts, **options) as source:
            return await source.read(url)

    return asyncio.run(fetch())


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "data:;base64,", "DATA:image/png;BASE64,"])
def test_data_urls_hold_the_image(prefix):
    assert read(prefix + base64.b64encode(PNG).decode()) == PNG


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png", "https://evil.test/a.png", "https://images.test:8443/a.png",
        "https://images.test.evil.test/a.png", "https://xexample.org/a.png", "https://images.test@evil.test/a.png",
        "https://user:secret@images.test/a.png", "http://images.test/a.png", "file:///etc/passwd", "/etc/passwd",
        "ftp://images.test/a.png", "images.test/a.png", "https:///a.png", "https://images.test:99999/a.png",
        "https://[::1/a.png", "", "https://images.test\n.evil.test/",
    ],
)  # fmt: skip
def test_only_listed_hosts_are_asked(url, monkeypatch):
    async def never(session, url):
        raise AssertionError(f"{url} was fetched")

    monkeypatch.setattr(images, "fetch", never)
    with pytest.raises(InvalidImage):
        read(url, ["images.test", "*.example.org", "example.net:8443"])
    with pytest.raises(InvalidImage, match=r"data: URL|is not the URL"):
        read(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://images.test/a.png", "https://images.test:443/a.png", "https://IMAGES.test/a.png",
        "https://images.test./a.png", "https://a.example.org/a.png", "https://b.a.example.org/",
        "https://example.net:8443/a.png",
    ],
)  # fmt: skip
def test_listed_hosts_are_asked(url, monkeypatch):
    async def fetched(session, url):
        return PNG

    monkeypatch.setattr(images, "fetch", fetched)
    assert read(url, ["images.test", "*.example.org", "example.net:8443"]) == PNG


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "2002:7f00:1::", "ff02::1",
        "64:ff9b::a00:1", "192.0.2.1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_outside_the_internet(address):
    assert not is_of_the_internet(address)


def test_only_public_addresses_are_of_the_internet():
    assert is_of_the_internet("8.8.8.8") and is_of_the_internet("2606:4700:4700::1111")


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
def test_a_listed_address_must_still_be_of_the_internet(host):
    with pytest.raises(InvalidImage, match="private network"):
        read(f"https://{host}/a.png", [host])


@pytest.mark.parametrize("answers", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"]])
def test_a_name_that_leads_into_a_private_network_is_not_connected_to(answers, monkeypatch):
    async def resolve(self, host, port=0, family=0):
        return [{"hostname": host, "host": each, "port": port, "family": 2, "proto": 6, "flags": 0} for each in answers]

    monkeypatch.setattr(images.ThreadedResolver, "resolve", resolve)
    with pytest.raises(InvalidImage, match=r"images\.test is in a private network"):
        read("https://images.test/a.png", ["images.test"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def ask(certificate):
    """Return a function that reads a path of a server with images and redirects, which may lead anywhere."""

    async def answer(request):
        places = {"/away": "https://evil.test/a.png", "/plain": "http://localhost/a.png", "/loop": "/loop"}
        if request.path in places:
            raise web.HTTPFound(places[request.path])
        if request.path == "/nowhere":
            return web.Response(status=302, headers={"Location": "https://[::1"})
        if request.path == "/near":
            raise web.HTTPTemporaryRedirect("image")
        if request.path == "/image":
            return web.Response(body=PNG)
        if request.path == "/large":
            return web.Response(body=bytes(3000))
        raise web.HTTPNotFound

    async def run(path):
        app = web.Application()
        app.router.add_get("/{path}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server)
        await site.start()
        port = runner.addresses[0][1]
        trusting = ssl.create_default_context(cafile=certificate / "cert.pem")
        connector = functools.partial(aiohttp.TCPConnector, ssl=trusting)
        hosts = [f"localhost:{port}"]
        try:
            async with ImageSource(hosts, permitted=lambda address: True, connector=connector) as source:
                return await source.read(f"https://localhost:{port}{path}")
        finally:
            await runner.cleanup()

    return lambda path: asyncio.run(run(path))


def test_an_image_is_fetched_also_where_the_host_redirects_to_itself(ask):
    assert ask("/image") == PNG
    assert ask("/near") == PNG


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/away", "not fetched from evil.test"), ("/plain", "https"), ("/loop", "too often"),
        ("/nowhere", "cannot be fetched"),
        ("/none", "HTTP status 404"), ("/large", "larger than"),
    ],
)  # fmt: skip
def test_redirects_are_checked_again_and_answers_limited(ask, path, words, monkeypatch):
    monkeypatch.setattr(images, "MOST_BYTES", 2000)
    with pytest.raises(InvalidImage, match=words):
        ask(path)
