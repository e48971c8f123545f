"""The measures count what their descriptions say, on a project of a few lines."""

from pathlib import Path

from tools.measures import Checkout, measure

FILES = {
    "florence2/__init__.py": "",
    "florence2/a.py": "from florence2 import b\ndef _once():\n    pass\ndef twice():\n    _once()\n",
    "florence2/b.py": "from florence2.c import x\n",
    "florence2/c.py": "import florence2.b\nx = 'no_repeat_ngram_size'\n",
    "florence2/d.py": "def later():\n    from florence2 import e\n",
    "florence2/e.py": "import florence2.d\n",
    "client/florence2_client/client.py": "import florence2.e\n",
    "model_repository/decoder/1/model.py": "import florence2.a\n",
    "model_repository/decoder/config.pbtxt": "# generated: inputs\nNO_REPEAT_NGRAM_SIZE\n# end of generated: inputs\n",
    "tests/test_c.py": "NO_REPEAT_NGRAM_SIZE = 1\n",
    "README.md": "a picture\n",  # sic
}


def written(folder: Path) -> Path:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_measures_of_a_small_project(tmp_path):
    measured = measure(written(tmp_path))
    assert measured["files to follow one request"] == "7 (server 4, client 3)"
    assert measured["files that mention a generation option"] == "1 + 1 tests"
    assert measured["import cycles"] == "1 + 1 hidden"
    assert measured["private helpers called once"] == "33 % (1 of 3)"
    assert measured["longest file"] == "5 (florence2/a.py)"
    assert measured["words to avoid"] == "1"


def test_cycles_are_named(tmp_path):
    assert Checkout(written(tmp_path)).cycles(hidden=False) == [{"florence2.b", "florence2.c"}]
