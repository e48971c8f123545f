"""The web page of `florence2 ui`, made with Gradio, which no other part of the client imports.

`layout` holds the form, `requests` sends its requests, `cards` shows the answers, `images` makes previews. The
page is private: no analytics, no public link, nothing fetched, no images left behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

from florence2.errors import InvalidRequest
from florence2_client.client import Client
from florence2_client.page.layout import CSS, make_page, theme

AT_ONCE = 16  # requests at the same time; others wait
LARGEST_FILE = "64mb"  # what Triton's HTTP takes


@contextlib.contextmanager
def served_page(client: Client, server_url: str, timeout: float, host: str, port: int) -> Iterator[str]:
    """Serve the page and yield its address. Port 0 picks a free one. Raise InvalidRequest if it cannot listen."""
    with tempfile.TemporaryDirectory(prefix="florence2-ui-", ignore_cleanup_errors=True) as images:
        os.environ["GRADIO_TEMP_DIR"] = images  # visitors' images are deleted with the page
        try:
            # Gradio takes port 0 for its default, and tells of no other reason than a port in use.
            name = host.strip("[]")  # Gradio takes an IPv6 address in brackets
            family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
            with socket.create_server((name, port), family=family) as probe:
                port = probe.getsockname()[1]
            page = make_page(client, server_url, timeout).queue(default_concurrency_limit=AT_ONCE)
            _app, url, _public = page.launch(
                server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, theme=theme(),
                css=CSS, max_file_size=LARGEST_FILE, ssr_mode=False, pwa=False, mcp_server=False,
                enable_monitoring=False, run_history=False, footer_links=[],
            )  # fmt: skip
        except UnicodeError as error:
            raise InvalidRequest(f"the page cannot listen on {host}: this is no name of a host") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE or not error.strerror:  # without: Gradio has tried the port
                raise InvalidRequest(
                    f"port {port} is already in use; choose another with --port; 0 picks a free one"
                ) from error
            raise InvalidRequest(f"the page cannot listen on {host}, port {port}: {error.strerror}") from error
        try:
            yield url
        finally:
            page.close(verbose=False)
