"""A stand-in of a CVAT server: what `cvat-cli task auto-annotate` and `cvat-cli function` ask of one."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

VERSION = "2.80.0"


def responses(images: list[Path], labels: dict[int, str]) -> dict[str, Any]:
    """Return the response for each path, JSON or the bytes of a file, for a task with these images and labels."""
    chunk = io.BytesIO()
    with zipfile.ZipFile(chunk, "w") as archive:
        for number, path in enumerate(images):
            archive.write(path, f"{number:06}{path.suffix}")
    task = {
        "id": 7, "name": "street", "url": "", "project_id": None, "organization": None, "size": len(images),
        "data_chunk_size": len(images), "data_original_chunk_type": "imageset", "dimension": "2d",
        "data_compressed_chunk_type": "imageset", "updated_date": "2026-01-01T00:00:00Z", "mode": "annotation",
        "jobs": {"url": "", "count": 1, "completed": 0, "validation": 0}, "labels": {"url": ""},
    }  # fmt: skip
    described = [
        {"id": number, "name": name, "type": "any", "attributes": [], "sublabels": [], "has_parent": False}
        for number, name in labels.items()
    ]
    frames = [{"name": path.name, "width": 640, "height": 640, "related_files": 0} for path in images]
    return {
        "/api/server/about": {
            "name": "CVAT",
            "description": "",
            "version": VERSION,
            "logo_url": "",
            "subtitle": "",
        },
        "/api/users/self": {"id": 1, "username": "user"},
        "/api/tasks/7": task,
        "/api/labels": {"count": len(labels), "next": None, "previous": None, "results": described},
        "/api/tasks/7/data/meta": {
            "chunks_updated_date": task["updated_date"],
            "deleted_frames": [],
            "frames": frames,
        },
        "/api/tasks/7/data": chunk.getvalue(),
    }


class CvatServer:
    """Task 7, whose labels are of any type, and one request to annotate it for an agent of function 1.

    `uploads` holds the annotations that it was sent.
    """

    def __init__(self, images: list[Path], labels: list[str]) -> None:
        self.uploads: list[dict[str, Any]] = []
        self.label_ids = [100 + number for number in range(len(labels))]
        answers = responses(images, dict(zip(self.label_ids, labels, strict=True)))
        waiting = [
            {
                "type": "annotate_task", "task": 7, "threshold": 0.5, "conv_mask_to_poly": False,
                "mapping": {name: {"name": name, "attributes": {}, "sublabels": {}} for name in labels},
            }
        ]  # fmt: skip
        uploads = self.uploads

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path.rstrip("/")
                self.send(answers.get(path), 200 if path in answers else 404)

            def do_PATCH(self) -> None:
                uploads.append(self.body())
                self.send({"tags": [], "shapes": [], "tracks": [], "version": 1})

            def do_POST(self) -> None:
                body = self.body()
                if self.path == "/api/functions":
                    answers["/api/functions/1"] = body | {"id": 1}
                    self.send(answers["/api/functions/1"])
                elif self.path.endswith("/acquire"):
                    assigned = waiting.pop() if waiting and body["request_category"] == "batch" else None
                    self.send({"ar_assignment": assigned and {"ar_id": "a", "ar_params": assigned}})
                else:
                    if self.path.endswith("/complete"):
                        uploads.append(body["annotations"])
                    self.send({})

            def body(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def send(self, answer: Any, status: int = 200) -> None:
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/zip" if isinstance(answer, bytes) else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> CvatServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
