"""Test hub ids with the real huggingface_hub, a small hub on this machine, and its cache on disk."""

import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest

from florence2.errors import CheckpointError
from florence2_export.checkpoint import read_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BRANCH_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with two commits of one repository and a gated one, as far as snapshot_download needs it."""

    folder: Path
    requested: list[str]
    REVISIONS: ClassVar = {"main": COMMIT, COMMIT: COMMIT, "tuned": BRANCH_COMMIT, BRANCH_COMMIT: BRANCH_COMMIT}

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.requested.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        if path.startswith(("example/gated", "api/models/example/gated")):
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        if not path.removeprefix("api/models/").startswith("example/florence-2"):
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if path.startswith("api/models/"):
            return self.describe(path.removeprefix("api/models/example/florence-2").strip("/"))
        _, _, _, revision, name = path.split("/", 4)
        file = self.folder / name
        if revision not in self.REVISIONS or not file.exists():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        self.answer(200, data, {"ETag": f'"{hash(data):x}"', "X-Repo-Commit": self.REVISIONS[revision]})

    def describe(self, path):
        """Send the repository's commit and files: /revision/R, and /tree/R if the library requests it."""
        kind, _, revision = path.partition("/")
        if revision not in self.REVISIONS:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"})
        names = [str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()]
        sizes = {name: (self.folder / name).stat().st_size for name in names}
        listing = [{"type": "file", "path": name, "size": sizes[name], "oid": name} for name in names]
        about = {"id": "example/florence-2", "sha": self.REVISIONS[revision], "private": False, "tags": [],
                 "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
        self.answer(200, json.dumps(listing if kind == "tree" else about).encode())

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(demo, tmp_path, monkeypatch):
    """Serve a hub with the bundled checkpoint, and use an empty cache."""
    handler = type("Handler", (Hub,), {"folder": tmp_path / "files", "requested": []})
    shutil.copytree(demo, handler.folder)
    (handler.folder / "modeling_florence2.py").write_text("raise SystemExit")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
        yield handler
        server.shutdown()


def use_hub(monkeypatch, endpoint: str, cache: Path) -> None:
    """Patch the library's function, because it reads its environment only at import."""
    snapshot_download = huggingface_hub.snapshot_download

    def download(hub_id, **options):
        return snapshot_download(hub_id, endpoint=endpoint, cache_dir=cache, token=False, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_a_hub_checkpoint_is_downloaded_and_keeps_its_id_and_commit(server, checkpoint):
    """The first time weights, configs and tokenizer are downloaded, but no code; the second time nothing."""
    read = read_checkpoint("example/florence-2")
    assert (read.source.name, read.source.revision) == ("example/florence-2", COMMIT)
    assert read.config.source == "example/florence-2"
    assert read.weights.keys() == checkpoint.weights.keys()
    downloads = [path for path in server.requested if path.startswith("GET") and "/resolve/" in path]
    assert len(downloads) == 6 and not any(".py" in path for path in downloads)
    read_checkpoint("example/florence-2")
    assert [path for path in server.requested if path.startswith("GET") and "/resolve/" in path] == downloads


def test_a_revision_is_a_branch_a_tag_or_a_commit(server):
    """The source records the commit that it stands for."""
    assert read_checkpoint("example/florence-2", revision="tuned").source.revision == BRANCH_COMMIT
    assert read_checkpoint("example/florence-2", revision=COMMIT).source.revision == COMMIT


def test_pickles_are_downloaded_only_if_there_are_no_other_weights(server):
    """Many repositories hold the same weights in both forms."""
    (server.folder / "pytorch_model.bin").write_bytes(b"never fetched")
    assert read_checkpoint("example/florence-2").files[0].name == "model.safetensors"
    assert not any("pytorch_model" in path for path in server.requested)
    (server.folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        read_checkpoint("example/florence-2", revision="tuned")


def test_a_checkpoint_may_be_in_a_folder_of_a_repository_and_lack_a_processor(server, demo, checkpoint):
    """OmniParser's icon_caption is one. Weights are downloaded only from its folder."""
    folder = server.folder / "icon_caption"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (server.folder / name).rename(folder / name)
    (server.folder / "model-of-something-else.safetensors").write_bytes(b"never fetched")
    read = read_checkpoint("example/florence-2", processor="example/florence-2", subfolder="icon_caption")
    assert (read.source.name, read.source.revision) == ("example/florence-2/icon_caption", COMMIT)
    assert (read.processor.name, read.weights.keys()) == ("example/florence-2", checkpoint.weights.keys())
    assert not any("something-else" in path for path in server.requested)
    with pytest.raises(CheckpointError, match="add --subfolder icon_caption"):
        read_checkpoint("example/florence-2")
    with pytest.raises(CheckpointError, match="has no folder icons"):
        read_checkpoint("example/florence-2", subfolder="icons")


@pytest.mark.parametrize(
    ("hub_id", "revision", "words"),
    [
        ("example/nothing", None, "has no such public repository; check the name, or log in"),
        ("example/gated", None, "is gated; accept its terms"),
        ("example/florence-2", "v9", "example/florence-2 has no revision v9"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(server, hub_id, revision, words):
    """Each error has its own remedy, so each has its own message."""
    assert words in refusal(hub_id, revision)


def refusal(hub_id: str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(hub_id, revision)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cached_checkpoint_needs_no_network(server, tmp_path, monkeypatch):
    """What is not in the cache is an error that says so."""
    read_checkpoint("example/florence-2")
    monkeypatch.undo()
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert read_checkpoint("example/florence-2").source.revision == COMMIT
    assert "neither a directory nor in the hub's cache, and the hub cannot be reached" in refusal("example/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_checkpoint("example/florence-2").source.revision == COMMIT
    assert "hub cannot be reached" in refusal("example/other")
    assert "revision v9 of example/florence-2" in refusal("example/florence-2", "v9")


def test_a_typo_is_not_looked_up_on_the_hub(tmp_path):
    """Only OWNER/NAME is a hub id."""
    for source in ("nothing-here", "./no/where", "a/b/c", str(tmp_path / "none")):
        assert "there is no directory" in refusal(source)
    (tmp_path / "file").touch()
    assert "is a file" in refusal(str(tmp_path / "file"))


def test_a_directory_has_no_revisions(demo):
    """A revision that has no effect is an error."""
    assert "has no revisions" in refusal(str(demo), "main")
