"""Images that are fetched from the web, and what is refused there."""

from __future__ import annotations

import http.server
import threading

import pytest

from florence2.errors import InvalidImage
from florence2_client import download
from florence2_client.images import encoded_bytes
from tests.unit.client.fake_transport import png

DATA = png((20, 10))
stop = threading.Event()


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        base = f"http://{self.headers['Host']}"
        match self.path.partition("?")[0]:
            case "/image.png":
                self.answer(200, DATA)
            case "/page":
                self.answer(200, b"<!doctype html><title>Sign in</title>")
            case "/empty":
                self.answer(200, b"")
            case "/moved":
                self.answer(302, b"", Location=f"{base}/image.png")
            case "/loop":
                self.answer(302, b"", Location=f"{base}/loop")
            case "/file":
                self.answer(302, b"", Location="file:///etc/passwd")
            case "/large":
                self.answer(200, bytes(2_000_000))
            case "/slow":
                self.send_response(200)
                self.end_headers()
                for _ in range(50):
                    self.wfile.write(b"x")
                    stop.wait(0.1)
            case _:
                self.answer(404, b"<html>")

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        stop.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(download, "MOST_BYTES", 1_000_000)
    monkeypatch.setattr(download, "MOST_SECONDS", 1.0)


@pytest.mark.parametrize("path", ["/image.png", "/image.png?size=large", "/moved"])
def test_an_image_on_the_web_is_fetched(site, path):
    assert encoded_bytes(site + path) == DATA


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "is an HTML page, not an image"),
        ("/empty", "is empty"),
        ("/missing?key=secret", "was answered with HTTP status 404"),
        ("/loop", "redirects too often"),
        ("/file", "redirects to an address that is not on the web"),
        ("/large", "is larger than"),
        ("/slow", "takes longer than"),
    ],
)
def test_what_cannot_be_fetched_is_named(site, path, words):
    with pytest.raises(InvalidImage, match=words) as caught:
        encoded_bytes(site + path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/x.png", "connection refused"),
        ("http://no-such-host.invalid/x.png", "unknown host"),
        ("http://127.0.0.1:99999/x.png", "is not the URL of an image"),
        ("http://[::1/x.png", "is not the URL of an image"),
        ("https://exa mple/" + "x" * 9999, "."),
    ],
)
def test_an_absent_site_is_one_sentence(url, words):
    with pytest.raises(InvalidImage, match=words) as caught:
        encoded_bytes(url)
    assert len(str(caught.value)) < 250


def test_a_redirect_into_a_private_network_is_refused(site, monkeypatch):
    monkeypatch.setattr(download, "_is_private", lambda url: url.endswith("/image.png"))
    with pytest.raises(InvalidImage, match="redirects to an address in a private network"):
        encoded_bytes(f"{site}/moved")


@pytest.mark.parametrize("host", ["10.0.0.1", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "[2002:a00:1::]"])
def test_private_addresses_are_known_in_every_form(host):
    assert download._is_private(f"http://{host}/image.png") and not download._is_private("http://8.8.8.8/image.png")
