"""Serve a folder over HTTP with byte ranges: ``python range_server.py FOLDER LOG``; prints its port.

A process of its own, because GDAL holds Python's lock while it opens a URL. Every answer with
content adds a line ``path bytes`` to LOG. Of a file called ``cut...`` it sends half of any part but
the first, and it fails at all that is called ``broken...``.
"""

from __future__ import annotations

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, LOG = Path(sys.argv[1]), Path(sys.argv[2])


class Ranges(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = FOLDER / self.path.lstrip("/")
        if path.name.startswith("broken"):
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        size, part = len(data), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is not None:
            first, last = int(part[1]), min(int(part[2] or size), size - 1)
            data = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            with LOG.open("a") as log:
                log.write(f"{self.path} {len(data)}\n")
            cut = path.name.startswith("cut") and part is not None and int(part[1]) > 0
            self.wfile.write(data[: len(data) // 2] if cut else data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
