"""A small Hub on loopback, which can do what networks and servers do: cut, lie, refuse, ask to wait."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote

LARGE = (".safetensors", ".bin", ".ckpt")
"""Ends of names of files that are stored apart and are served by a redirect."""


def blob_name(path: str, content: bytes) -> str:
    """What the Hub calls a file's content: the sha256 of a large one, git's number of a small one."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """Repositories by name, each a commit and its files. `faults` are what goes wrong, by path, one a request."""

    repos: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the list says of a file in place of the truth, by path."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    halted: Event = field(default_factory=Event)
    """Set when a request stands still half way, which it does until `go_on` is set."""
    go_on: Event = field(default_factory=Event)
    url: str = ""

    def add(self, repo: str, files: Mapping[str, bytes], commit: str = "a" * 40) -> None:
        """A repository, or its next commit."""
        self.repos[repo] = (commit, dict(files))

    def asked_for(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for a file's content."""
        return [headers for at, headers in self.requests if at.endswith("/" + path)]

    def listing(self, repo: str) -> dict[str, Any]:
        """As the Hub's API answers."""
        commit, files = self.repos[repo]
        siblings = []
        for path, content in files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob_name(path, content)}
            if path.endswith(LARGE):
                large = {"sha256": entry["blobId"], "size": len(content), "pointerSize": 130}
                entry |= {"lfs": large, "blobId": "b" * 40}
            siblings.append(entry | self.listed.get(path, {}))
        return {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": False,
            "tags": [],
            "siblings": siblings,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and content are written apart: 40 ms between them

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(self.path).partition("?")[0]
        hub.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
        if found := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
            self._list(hub, found[1], found[2])
        elif found := re.fullmatch(r"/(?:cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._give(hub, found[1], found[3])
        else:
            self._answer(404, b"nothing here")

    def _list(self, hub: Hub, repo: str, revision: str) -> None:
        fault = hub.faults["list"].pop(0) if hub.faults["list"] else ""
        if fault.isdigit():
            self._answer(int(fault), b"{}", **({"Retry-After": "1"} if fault == "429" else {}))
        elif fault == "page":
            self._answer(200, b"<html>log in to this network</html>")
        elif fault == "gated":
            self._answer(403, b"{}", **{"X-Error-Code": "GatedRepo"})
        elif repo not in hub.repos:
            self._answer(401, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif revision != "main" and not hub.repos[repo][0].startswith(revision):
            self._answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(200, json.dumps(hub.listing(repo)).encode(), **{"Content-Type": "application/json"})

    def _give(self, hub: Hub, repo: str, path: str) -> None:
        content = hub.repos[repo][1][path]
        if path.endswith(LARGE) and not self.path.startswith("/cdn/"):
            where = f"http://localhost:{self.server.server_address[1]}/cdn{self.path}"  # another host: another origin
            headers = {"X-Linked-Etag": f'"{blob_name(path, content)}"', "X-Linked-Size": str(len(content))}
            self._answer(302, b"", Location=where, **headers)
            return
        fault = hub.faults[path].pop(0) if hub.faults[path] else ""
        if fault.isdigit():
            self._answer(int(fault), b"no", **({"Retry-After": "0"} if fault == "429" else {}))
            return
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if fault == "whole":
            begin = 0
        if fault in ("wrong", "short", "long"):
            turned = bytes(byte ^ 255 for byte in content)
            content = {"wrong": turned, "short": content[:-7], "long": content + b"more"}[fault]
        if begin >= len(content) and content:
            self._answer(416, b"")
            return
        rest = content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest) + 4, rest + b"more"))
            return
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if fault in ("cut", "halt"):
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            if fault == "halt":
                hub.halted.set()
                hub.go_on.wait(20)
                self.wfile.write(rest[len(rest) // 2 :])
            self.close_connection = True
            return
        self.wfile.write(rest)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Serves a Hub until it is closed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = Hub(url=f"http://127.0.0.1:{self.server_address[1]}")
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no failure of the server."""
