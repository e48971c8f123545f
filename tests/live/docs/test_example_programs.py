"""Each program in examples/ runs against the live server, and its types hold under `mypy --strict`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from florence2_client.gateway.app import GatewayOptions, make_app
from florence2_client.gateway.server import Front
from tests.live.client.cvat_server import CvatServer
from tools.toy_model import scenes

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder in which the programs run; it has a folder of images."""
    (tmp_path / "images").mkdir()
    for index in range(2):
        scenes.make_scene(900_003 + index).draw(640).save(tmp_path / "images" / f"street-{index}.jpg")
    return tmp_path


def run(program: str | Path, folder: Path, *arguments: str, **variables: str) -> str:
    path = EXAMPLES / program  # or the program itself, if its path is absolute
    program = {".py": [sys.executable], ".mjs": ["node"], ".java": ["java"]}
    command = [*program.get(path.suffix, []), path]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables
    done = subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IMAGE = "images/street-0.jpg"


def test_the_client_library(server, folder):
    """Detected objects are printed and drawn; tasks run at once; a file that is not an image gets an error."""
    assert "[" in run("client_sync.py", folder, IMAGE, server.http_url).replace("(", "[")
    assert (folder / "objects.png").exists()
    printed = run("client_async.py", folder, IMAGE, server.grpc_url)
    assert [line.partition(":")[0] for line in printed.splitlines()] == ["caption", "text", "objects"]
    (folder / "images" / "notes.txt").write_text("no image")
    notes, *captions = run("client_batch.py", folder, "images", server.grpc_url).splitlines()
    assert notes.startswith("notes.txt: ") and len(captions) == 2


def test_several_tasks_and_phrases_in_one_call(server, folder):
    """Each phrase is answered, and each object has a mask in the image's size."""
    *_, star, triangle, circle = run("client_several.py", folder, IMAGE, server.grpc_url).splitlines()
    assert [line.partition(" -> ")[0] for line in (star, triangle, circle)] == ["a star", "a triangle", "a circle"]
    assert (folder / "outlines.png").exists()
    assert all(Image.open(mask).size == (640, 640) for mask in folder.glob("[0-9]-*.png"))


def test_a_folder_is_labeled(server, folder):
    """What is found is printed, and written for YOLO and COCO."""
    printed = [line.split() for line in run("label_folder.py", folder, "images", server.grpc_url).splitlines()]
    assert [path for path, *_ in printed] == ["images/street-0.jpg", "images/street-1.jpg"]
    classes = {name for _, *names in printed for name in names}
    assert classes and classes <= {"star", "triangle", "circle"}
    assert all((folder / "dataset" / "labels" / f"street-{number}.txt").exists() for number in range(2))
    assert json.loads((folder / "dataset.json").read_text())["annotations"]


@pytest.mark.skipif(not Path(sys.executable).with_name("cvat-cli").exists(), reason="cvat-cli is not installed")
def test_a_task_of_cvat_is_annotated(server, folder):
    """cvat-cli downloads the images from a stand-in of CVAT, and uploads boxes in pixels with their scores."""
    images = sorted((folder / "images").iterdir())
    with CvatServer(images, ["star", "triangle"]) as cvat:
        variables = {"CVAT_HOST": f"http://127.0.0.1:{cvat.port}", "CVAT_ACCESS_TOKEN": "key", "HOME": str(folder)}
        run("cvat.sh", folder, "7", "a star=star,triangle,a circle=circle", server.grpc_url, **variables)
    [upload] = cvat.uploads
    assert {shape["frame"] for shape in upload["shapes"]} == {0, 1}
    for shape in upload["shapes"]:
        x1, y1, x2, y2 = shape["points"]
        assert shape["type"] == "rectangle" and 0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 640
        assert shape["label_id"] in cvat.label_ids and 0.5 <= shape["score"] <= 1


@pytest.mark.skipif(not importlib.util.find_spec("fiftyone"), reason="FiftyOne is not installed")
def test_fiftyone(server, folder):
    """Captions and boxes are in the data set."""
    counts, *captions = run("fiftyone_model.py", folder, "images", server.grpc_url, HOME=str(folder)).splitlines()[-3:]
    assert "star" in counts or "triangle" in counts
    assert len(captions) == 2 and all(captions)


@pytest.mark.skipif(not importlib.util.find_spec("kserve"), reason="KServe's client is not installed")
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_kserves_client(server, folder, protocol):
    url = server.http_url if protocol == "http" else server.grpc_url.removeprefix("grpc://")
    assert "[" in run("kserve_client.py", folder, IMAGE, url)


def test_the_parser_of_screenshots(server, folder):
    """Each element has a box and a text. The bundled model captions the icons too."""
    elements = [json.loads(line) for line in run("ui_parser.py", folder, IMAGE, server.grpc_url).splitlines()]
    assert {element["type"] for element in elements} <= {"text", "icon"}
    icons = [element for element in elements if element["type"] == "icon"]
    assert icons and all(len(icon["box"]) == 4 and icon["content"] for icon in icons)


def test_nvidias_client(server, folder):
    """tritonclient gets an answer over gRPC, without this project's packages."""
    assert "[" in run("triton_grpc.py", folder, IMAGE, server.grpc_url.removeprefix("grpc://"))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(server, folder):
    """The program gets its answer over HTTP."""
    response = json.loads(run("generate.sh", folder, IMAGE, server.http_url.removeprefix("http://")))
    assert json.loads(response["RESULT"])["<OD>"]["labels"]


@pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")
def test_javascript(server, folder):
    """Node's own fetch gets the boxes."""
    assert "[" in run("generate.mjs", folder, IMAGE, server.http_url.removeprefix("http://"))


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_javascript_over_grpc(server, folder):
    """gRPC's own package for Node gets the boxes with the bundled part of KServe's protocol."""
    install = ["npm", "install", "--silent", "--no-audit", "--prefix", folder, "@grpc/grpc-js", "@grpc/proto-loader"]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("npm's registry cannot be reached")
    for name in ("infer.mjs", "kserve.proto"):  # Node looks for packages in the folder of the program
        shutil.copy(EXAMPLES / name, folder)
    assert "[" in run(folder / "infer.mjs", folder, IMAGE, server.grpc_url.removeprefix("grpc://"))


@pytest.mark.skipif(not all(map(shutil.which, ("go", "protoc", "protoc-gen-go"))), reason="Go is not installed")
def test_go_over_grpc(server, folder):
    """Go gets the boxes, with Debian's golang-google-grpc-dev and protoc-gen-go-1-3, which need no network."""
    module = folder / "src" / "example"
    module.mkdir(parents=True)
    generate = ["protoc", f"--go_out=plugins=grpc:{module}", "kserve.proto"]
    debians = Path("/usr/share/gocode/src/google.golang.org/grpc").is_dir()
    if not debians or subprocess.run(generate, cwd=EXAMPLES, capture_output=True).returncode:
        pytest.skip("Debian's packages are not installed")
    program, environment = folder / "infer", {"GO111MODULE": "off", "GOPATH": f"{folder}:/usr/share/gocode"}
    command = ["go", "build", "-o", program, EXAMPLES / "infer.go"]
    subprocess.run(command, cwd=module, env=os.environ | environment, check=True)
    assert "[" in run(program, folder, IMAGE, server.grpc_url.removeprefix("grpc://"))


@pytest.mark.skipif(not shutil.which("java"), reason="Java is not installed")
def test_java(server, folder):
    """Java's own HTTP client gets the caption."""
    response = json.loads(run("Generate.java", folder, IMAGE, server.http_url.removeprefix("http://")))
    assert json.loads(response["RESULT"])["<CAPTION>"]


def test_openais_client(server, folder):
    """It gets boxes through the gateway."""
    front = Front("127.0.0.1", 0, drain_seconds=5)
    with front.running(make_app(GatewayOptions(url=server.grpc_url), None)):
        assert "[" in run("openai_client.py", folder, IMAGE, f"{front.url}/v1")


def test_the_command_line(server, folder):
    """The batch writes answers and a COCO file for all images."""
    run("batch.sh", folder, "images", server.grpc_url)
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 4
    assert json.loads((folder / "objects.json").read_text())["images"]


def test_the_notebook(server, monkeypatch):
    """All cells run, and print or show what the stored outputs do. These are of a size that a repository can keep."""
    path = EXAMPLES / "florence2.ipynb"
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    assert path.stat().st_size < 300_000
    monkeypatch.setenv("FLORENCE2_URL", server.grpc_url)
    resources = {"metadata": {"path": EXAMPLES}}
    fresh = NotebookClient(nbformat.read(path, as_version=4), timeout=120, resources=resources).execute()

    def kinds(notebook):
        return [{(output.output_type, *sorted(output.get("data", ()))) for output in cell.get("outputs", ())}
                for cell in notebook.cells]  # fmt: skip

    assert kinds(fresh) == kinds(stored)
    assert all(cell.outputs for cell in stored.cells if cell.cell_type == "code")


def test_every_example_is_listed_and_tested():
    """README's table names each program, and a test here runs it."""
    programs = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    text, tests = (EXAMPLES / "README.md").read_text(), Path(__file__).read_text()
    assert all(f"]({name})" in text and f'"{name}"' in tests for name in programs)
