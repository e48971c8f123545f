"""Every public name of the client library has an example in its docstring, and all examples run on the live server."""

from __future__ import annotations

import doctest
import inspect
import shutil
from pathlib import Path

import pytest

import florence2_client
from florence2_client import Client

SCENE = Path(__file__).parents[2] / "demo" / "images" / "scene.png"


def public_objects():
    """Yield classes, their public methods and functions, by name, except errors and tables of options."""
    for name in florence2_client.__all__:
        value = getattr(florence2_client, name)
        if inspect.isclass(value) and issubclass(value, (Exception, dict)):
            continue
        yield name, value
        for member, method in inspect.getmembers(value) if inspect.isclass(value) else ():
            if any(getattr(kind, member, None) is method for kind in (str, list)):  # inherited by Prompt and Results
                continue
            if not member.startswith("_") and inspect.getdoc(method) and (callable(method) or type(method) is property):
                yield f"{name}.{member}", method


@pytest.mark.parametrize(
    ("name", "value"), list(public_objects()), ids=lambda value: value if type(value) is str else ""
)
def test_the_example_runs(server, tmp_path, monkeypatch, name, value):
    """It runs as written, except for the port; `client` is connected and scene.png is the demo's image."""
    text = inspect.getdoc(value).replace("grpc://127.0.0.1:8001", server.grpc_url)
    shutil.copy(SCENE, tmp_path)
    (tmp_path / "our-authority.pem").touch()
    monkeypatch.chdir(tmp_path)
    names = {public: getattr(florence2_client, public) for public in florence2_client.__all__}
    with Client(server.grpc_url) as client:
        example = doctest.DocTestParser().get_doctest(text, names | {"client": client}, name, None, 0)
        assert example.examples, f"{name} has no example"
        failures: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=failures.append)
    assert not failures, "".join(failures)
