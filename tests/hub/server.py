"""The stand-in hub: an HTTP server that answers what huggingface_hub and datasets ask of the real one.

ROOT/models/ORG/NAME and ROOT/datasets/ORG/NAME are repositories. Revision `main` is what lies there. A change makes a
new commit, and old commits stay available, as on the hub. Files of `LARGE` bytes and more are served as LFS objects,
through a redirect to another host name. As a proxy (CONNECT) for hosts that are not the hub it answers in their place,
with a certificate of its own, what `archives` holds by file name; without any it reaches nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = 1000  # bytes; larger files are LFS objects
KINDS = {"models": "", "datasets": "datasets/"}
BLOCK = 1 << 14
ARCHIVES = {"source.zip": "nfcorpus.zip"}  # a host's name of a file that ir-datasets keeps under another
HOSTS = ("public.ukp.informatik.tu-darmstadt.de", "downloads.cs.stanford.edu")  # of BEIR's and LoTTE's archives


def certificate(folder: Path) -> Path:
    """A certificate for HOSTS with its key, in one file below `folder`, which a client is told to trust."""
    path, key = folder / "certificate.pem", folder / "key.pem"
    if not path.exists():
        names = ",".join(f"DNS:{host}" for host in HOSTS)
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=stand-in"]
        command += ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        path.write_text(path.read_text() + key.read_text())
    return path


@dataclass
class Fault:
    """What happens to requests whose `METHOD /path` matches, after the first `after` and at most `times` times.

    status: an error of that code (with Retry-After where `retry_after` is set); truncate: the body ends after `size`
    bytes; reset: the connection is closed without an answer; stall: nothing is sent for `seconds`; slow: `seconds` a
    block; garble: the bytes are other ones.
    """

    match: str
    action: str
    status: int = 500
    size: int = 100
    seconds: float = 600.0
    retry_after: int | None = None
    after: int = 0
    times: int = 10**9
    seen: int = 0

    def strikes(self, line: str) -> bool:
        if not re.search(self.match, line):
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


@dataclass(frozen=True)
class Blob:
    data: bytes

    @property
    def sha1(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def large(self) -> bool:
        return len(self.data) >= LARGE

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.sha1


Tree = dict[str, Blob]


class Repository:
    """A folder with history: every state that was ever asked for stays available under its commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commits: dict[str, Tree] = {}
        self.main = ""
        self._stamp: Any = None
        self._lock = threading.Lock()

    def look(self) -> str:
        """The commit of `main`, which is a new one where a file has changed."""
        with self._lock:
            files = sorted(path for path in self.folder.rglob("*") if path.is_file())
            stamp = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
            if stamp != self._stamp:
                tree = {path.relative_to(self.folder).as_posix(): Blob(path.read_bytes()) for path in files}
                listing = json.dumps({name: blob.sha1 for name, blob in tree.items()}, sort_keys=True)
                self.main, self._stamp = hashlib.sha1(listing.encode()).hexdigest(), stamp
                self.commits[self.main] = tree
            return self.main


@dataclass
class Refusal(Exception):
    status: int
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server, in this process: `with Hub(root) as hub`, then `hub.environment()` for a subprocess."""

    def __init__(self, root: Path, port: int = 0) -> None:
        self.root = root
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self.archives: dict[str, bytes] = {}  # what other hosts serve, by file name
        self.tls: ssl.SSLContext | None = None
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._objects: dict[str, bytes] = {}  # LFS objects of an upload that is not committed yet
        self._lock = threading.Lock()
        handler = type("Bound", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that went away
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to use this hub, with its caches below `home`. The stand-in refuses other hosts."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # uploads by plain HTTP, which every hub takes
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_stand_in",
            "IR_DATASETS_HOME": str(home / "irds"),
            "HTTPS_PROXY": self.url,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def serve(self, path: Path, folder: Path) -> dict[str, str]:
        """Be the host of an archive. Returns what a process needs so that it trusts this one."""
        pem = certificate(folder)
        if self.tls is None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(pem)
        self.archives[ARCHIVES.get(path.name, path.name)] = path.read_bytes()
        return {"REQUESTS_CA_BUNDLE": str(pem)}

    def fault(self, match: str, action: str, **settings: Any) -> Fault:
        self.faults.append(Fault(match, action, **settings))
        return self.faults[-1]

    def folder(self, kind: str, name: str) -> Path:
        return self.root / kind / name

    def repository(self, kind: str, name: str) -> Repository:
        folder = self.folder(kind, name)
        if not folder.is_dir():
            raise Refusal(401, "RepoNotFound")  # what the hub says of an unknown and of a private one alike
        with self._lock:
            return self._repositories.setdefault((kind, name), Repository(folder))

    def tree(self, kind: str, name: str, revision: str) -> tuple[str, Tree]:
        repository = self.repository(kind, name)
        main = repository.look()
        commit = main if revision in ("main", "refs/heads/main") else revision
        if commit not in repository.commits:
            raise Refusal(404, "RevisionNotFound")
        return commit, repository.commits[commit]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_CONNECT = do_GET

    def _answer(self) -> None:
        self.body = self._read_body()
        line = f"{self.command} {urllib.parse.unquote(self.path)}"
        self.hub.requests.append(line)
        self.struck = next((fault for fault in list(self.hub.faults) if fault.strikes(line)), None)
        action = self.struck.action if self.struck else None
        try:
            if action == "stall" and self.struck:
                time.sleep(self.struck.seconds)
            if action in ("reset", "stall"):
                self.close_connection = True
                return
            if action == "status" and self.struck:
                wait = self.struck.retry_after
                raise Refusal(self.struck.status, headers={} if wait is None else {"Retry-After": str(wait)})
            if self.command == "CONNECT":
                self._tunnel()
            else:
                self._route()
        except Refusal as refusal:
            headers = refusal.headers | ({"X-Error-Code": refusal.code} if refusal.code else {})
            message = refusal.code or f"status {refusal.status}, as asked for"
            self._send(refusal.status, json.dumps({"error": message}).encode(), headers | {"X-Error-Message": message})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _tunnel(self) -> None:
        """Go on as the host that was asked for, under TLS."""
        if self.hub.tls is None:
            raise Refusal(502)
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            self.connection = self.hub.tls.wrap_socket(self.connection, server_side=True)
        except OSError:  # the client went away, or trusts nobody
            self.close_connection = True
            return
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(url.query)
        parts = [urllib.parse.unquote(part) for part in url.path.split("/") if part]
        match parts:
            case []:
                self._send(200, b"a hub for tests")
            case [*_, name] if name in self.hub.archives:
                self._bytes(self.hub.archives[name], {"Accept-Ranges": "bytes"})
            case ["objects", sha]:
                self._object(sha)
            case ["api", "whoami-v2"]:
                self._json({"name": "tester", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self._create()
            case ["api", ("models" | "datasets") as kind, org, name, *rest]:
                self._api(kind, f"{org}/{name}", rest)
            case [*_, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                self._lfs_batch()
            case ["datasets", org, name, "resolve", revision, *path]:
                self._resolve("datasets", f"{org}/{name}", revision, "/".join(path))
            case [org, name, "resolve", revision, *path]:
                self._resolve("models", f"{org}/{name}", revision, "/".join(path))
            case _:
                raise Refusal(404)

    # --- reading --------------------------------------------------------------------------------------------------

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        match rest:
            case [] | ["revision", _]:
                commit, tree = self.hub.tree(kind, name, rest[1] if rest else "main")
                self._json(_info(name, commit, tree, name in self.hub.gated))
            case ["refs"]:
                main = self.hub.repository(kind, name).look()
                branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": main}
                self._json({"tags": [], "branches": [branch], "converts": []})
            case ["tree", revision, *under]:
                self._json(list(self._entries(*self.hub.tree(kind, name, revision), "/".join(under))))
            case ["paths-info", revision]:
                _, tree = self.hub.tree(kind, name, revision)
                self._json(list(_path_infos(tree, self._paths())))
            case ["preupload", _]:
                files = json.loads(self.body)["files"]
                self.hub.folder(kind, name).mkdir(parents=True, exist_ok=True)
                modes = [(f["path"], "lfs" if f["size"] >= LARGE else "regular") for f in files]
                self._json(
                    {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None} for p, m in modes]}
                )
            case ["commit", _]:
                self._commit(kind, name)
            case _:
                raise Refusal(404)

    def _paths(self) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return list(json.loads(self.body)["paths"])
        return urllib.parse.parse_qs(self.body.decode()).get("paths", [])

    def _entries(self, commit: str, tree: Tree, under: str) -> Iterator[dict[str, Any]]:
        start = f"{under}/" if under else ""
        inside = [name for name in tree if name.startswith(start)]
        if not inside:
            raise Refusal(404, "EntryNotFound", {"X-Repo-Commit": commit})
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        folders: set[str] = set()
        for name in inside:
            steps = name[len(start) :].split("/")
            for depth in range(1, len(steps)):
                folder = start + "/".join(steps[:depth])
                if folder not in folders and (recursive or depth == 1):
                    folders.add(folder)
                    yield _folder(folder)
            if recursive or len(steps) == 1:
                yield _file(name, tree[name])

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        commit, tree = self.hub.tree(kind, name, revision)
        if name in self.hub.gated:
            raise Refusal(401, "GatedRepo", {"X-Repo-Commit": commit})
        if path not in tree:
            raise Refusal(404, "EntryNotFound", {"X-Repo-Commit": commit})
        blob = tree[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if not blob.large:
            self._bytes(blob.data, headers)
            return
        self.hub._objects[blob.sha256] = blob.data
        headers |= {"X-Linked-Size": str(len(blob.data)), "X-Linked-ETag": f'"{blob.etag}"'}
        self._send(
            302, b"", headers | {"Location": f"http://localhost:{self.hub.port}/objects/{blob.sha256}?name={path}"}
        )

    # --- writing --------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        asked = json.loads(self.body)
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        folder = self.hub.folder(kind, name)
        there = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        url = f"{self.hub.url}/{KINDS[kind]}{name}"
        self._json({"url": url, "name": name, "id": name}, 409 if there else 200)

    def _lfs_batch(self) -> None:
        objects = []
        for entry in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/objects/{entry['oid']}"
            objects.append({**entry, "authenticated": True, "actions": {"upload": {"href": href, "header": {}}}})
        self._json({"transfer": "basic", "objects": objects})

    def _object(self, sha: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != sha:
                raise Refusal(422)
            self.hub._objects[sha] = self.body
            self._send(200)
            return
        if sha not in self.hub._objects:
            raise Refusal(404)
        self._bytes(self.hub._objects[sha], {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"})

    def _commit(self, kind: str, name: str) -> None:
        folder = self.hub.folder(kind, name)
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                data = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                data = self.hub._objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                (folder / value["path"]).unlink()
                continue
            else:
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        commit = self.hub.repository(kind, name).look()
        url = f"{self.hub.url}/{KINDS[kind]}{name}"
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{url}/commit/{commit}", "hookOutput": ""})

    # --- sending --------------------------------------------------------------------------------------------------

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _bytes(self, data: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or wanted.groups() == ("", ""):
            self._send(200, data, headers)
            return
        first, last = wanted.groups()
        begin = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last), len(data) - 1) if first and last else len(data) - 1
        if begin >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        part = {"Content-Range": f"bytes {begin}-{end}/{len(data)}"}
        self._send(206, data[begin : end + 1], headers | part)

    def _send(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command in ("HEAD", "CONNECT"):
            return
        fault = self.struck
        if fault and status in (200, 206):
            if fault.action == "truncate":
                data, self.close_connection = data[: fault.size], True
            elif fault.action == "garble":
                data = bytes(byte ^ 0x55 for byte in data)
        for start in range(0, len(data), BLOCK):
            if fault and fault.action == "slow":
                time.sleep(fault.seconds)
            self.wfile.write(data[start : start + BLOCK])


def _info(name: str, commit: str, tree: Tree, gated: bool) -> dict[str, Any]:
    stamp = "2026-01-01T00:00:00.000Z"
    info = {"_id": commit[:24], "id": name, "modelId": name, "author": name.partition("/")[0], "sha": commit}
    info |= {"private": False, "gated": "manual" if gated else False, "disabled": False, "downloads": 1, "likes": 1}
    info |= {"lastModified": stamp, "createdAt": stamp, "tags": [], "siblings": [{"rfilename": path} for path in tree]}
    return info


def _file(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob.sha1, "size": len(blob.data), "path": path}
    return entry | ({"lfs": {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}} if blob.large else {})


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def _path_infos(tree: Tree, paths: list[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        if path in tree:
            yield _file(path, tree[path])
        elif any(name.startswith(f"{path}/") for name in tree):
            yield _folder(path)
