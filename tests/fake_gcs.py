"""An object store in this process: enough of Google's JSON API for gcsfs, Orbax and TensorStore,
with faults on demand. Objects live in a dict, so a test sees exactly what a reader would."""

import base64
import collections
import email.parser
import hashlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable

BUCKET = "bucket"
_OBJECT = re.compile(r"(?:/download|/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]*))?(?:/(.+))?")


class FakeGcs:
  """The store and its server.

  Attributes:
    objects: {name: bytes} of the bucket.
    faults: asked before every request as `faults(method, url) -> str | None`. A number is that
      HTTP status; "cut" drops the connection before anything is done; "half" reads half of an
      upload, or sends half of a download, then drops it; "lost" does the work and drops the answer.
    requests: the number of requests so far by (method, fault).
  """

  def __init__(self):
    self.objects: dict[str, bytes] = {}
    self.generations: dict[str, int] = collections.defaultdict(int)
    self.uploads: dict[str, tuple[str, bytearray]] = {}
    self.faults: Callable[[str, str], str | None] = lambda method, url: None
    self.requests: collections.Counter = collections.Counter()
    self.lock = threading.RLock()
    handler = type("Handler", (_Handler,), {"store": self})
    self.server = _Server(("127.0.0.1", 0), handler)
    self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
    threading.Thread(target=self.server.serve_forever, daemon=True).start()

  def close(self) -> None:
    self.server.shutdown()
    self.server.server_close()

  def reset(self) -> None:
    self.objects.clear()
    self.requests.clear()
    self.reset_faults()

  def reset_faults(self) -> None:
    self.faults = lambda method, url: None

  def fail_times(self, times: int, fault: str, method: str, pattern: str = "") -> None:
    """The next `times` requests of the method whose URL matches go wrong."""
    left = [times]

    def faults(used: str, url: str) -> str | None:
      if used == method and re.search(pattern, url) and left[0]:
        left[0] -= 1
        return fault
      return None

    self.faults = faults

  def put(self, name: str, data: bytes) -> None:
    with self.lock:
      self.generations[name] += 1
      self.objects[name] = bytes(data)

  def about(self, name: str) -> dict:
    data = self.objects[name]
    return {
      "kind": "storage#object",
      "name": name,
      "bucket": BUCKET,
      "size": str(len(data)),
      "generation": str(self.generations[name]),
      "metageneration": "1",
      "updated": "2026-01-01T00:00:00.000Z",
      "timeCreated": "2026-01-01T00:00:00.000Z",
      "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
    }


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, *_):
    """Clients that hang up are nothing to report."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  store: FakeGcs

  def log_message(self, *_):
    pass

  def handle_any(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    self.fault = self.store.faults(self.command, self.path)
    self.store.requests[self.command, self.fault] += 1
    size = int(self.headers.get("Content-Length") or 0)
    if self.fault == "cut" or (self.fault == "half" and size):
      self.rfile.read(size // 2)
      return self.drop()
    body = self.rfile.read(size)
    if self.fault and self.fault.isdigit():
      error = {"code": int(self.fault), "message": f"fault {self.fault}"}
      return self.answer(int(self.fault), {"error": error})
    with self.store.lock:
      status, value, headers = self.respond(url.path, query, body)
    self.answer(status, value, headers)

  do_GET = do_POST = do_PUT = do_DELETE = handle_any

  def drop(self):
    self.close_connection = True
    self.connection.shutdown(socket.SHUT_RDWR)

  def answer(self, status: int, value: dict | bytes | None, headers: dict | None = None) -> None:
    if self.fault == "lost":
      return self.drop()
    data = value if isinstance(value, bytes) else json.dumps(value).encode() if value else b""
    self.send_response(status)
    for name, text in (headers or {}).items():
      self.send_header(name, text)
    if not isinstance(value, bytes):
      self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.fault == "half":
      self.wfile.write(data[: len(data) // 2])
      return self.drop()
    self.wfile.write(data)

  def respond(self, path: str, query: dict, body: bytes) -> tuple[int, dict | bytes | None, dict]:
    if re.fullmatch(r"/storage/v1/b/[^/]+", path):
      known = path.endswith("/" + BUCKET)
      return (200, {"kind": "storage#bucket", "name": BUCKET}, {}) if known else _missing(path)
    match = _OBJECT.fullmatch(path)
    if match is None or match[1] != BUCKET:
      return _missing(path)
    name = urllib.parse.unquote(match[2] or "")
    if path.startswith("/upload"):
      return self.upload(query, body)
    if self.command == "GET" and not name:
      return self.list(query)
    if name not in self.store.objects:
      return _missing(name)
    if self.command == "DELETE":
      del self.store.objects[name]
      return 204, None, {}
    if match[3]:  # rewriteTo/b/BUCKET/o/NAME, copyTo, moveTo
      verb, target = match[3].split("/")[0], urllib.parse.unquote(match[3].split("/")[-1])
      self.store.put(target, self.store.objects[name])
      if verb == "moveTo":
        del self.store.objects[name]
      about = self.store.about(target)
      return 200, {"done": True, "resource": about} if verb == "rewriteTo" else about, {}
    return self.read(name) if query.get("alt") == "media" else (200, self.store.about(name), {})

  def read(self, name: str) -> tuple[int, bytes | None, dict]:
    data, about = self.store.objects[name], self.store.about(name)
    headers = {
      "x-goog-generation": about["generation"],
      "x-goog-hash": f"md5={about['md5Hash']}",
      "Content-Type": "application/octet-stream",
    }
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
    if not wanted:
      return 200, data, headers
    first = int(wanted[1]) if wanted[1] else max(0, len(data) - int(wanted[2]))
    stop = int(wanted[2]) + 1 if wanted[1] and wanted[2] else len(data)
    if first >= len(data):
      return 416, None, {}
    part = data[first:stop]
    headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
    return 206, part, headers

  def list(self, query: dict) -> tuple[int, dict, dict]:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    items, prefixes = [], set()
    for name in sorted(self.store.objects):
      if not name.startswith(prefix) or name < query.get("startOffset", ""):
        continue
      if "endOffset" in query and name >= query["endOffset"]:
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(self.store.about(name))
    return 200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}, {}

  def upload(self, query: dict, body: bytes) -> tuple[int, dict | None, dict]:
    if "upload_id" in query:
      return self.upload_part(query["upload_id"], body)
    name, data = query.get("name", ""), body
    if query["uploadType"] == "multipart":
      kind = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
      marker = b"--" + email.parser.BytesParser().parsebytes(kind).get_boundary().encode()
      _, about, content = body.split(marker)[:3]
      name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
      data = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1].removesuffix(b"\n")
    expected = query.get("ifGenerationMatch")
    current = self.store.generations[name] if name in self.store.objects else 0
    if expected is not None and int(expected) != current:
      return 412, {"error": {"code": 412, "message": "conditionNotMet"}}, {}
    if query["uploadType"] == "resumable":
      upload = str(len(self.store.uploads))
      self.store.uploads[upload] = (name, bytearray())
      at = (
        f"{self.store.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={upload}"
      )
      return 200, None, {"Location": at}
    self.store.put(name, data)
    return 200, self.store.about(name), {}

  def upload_part(self, upload: str, body: bytes) -> tuple[int, dict | None, dict]:
    name, data = self.store.uploads[upload]
    if self.command == "DELETE":
      return 499, None, {}
    # "bytes FIRST-LAST/SIZE", or "bytes */SIZE" where there is nothing to send.
    span, size = self.headers["Content-Range"].removeprefix("bytes ").split("/")
    first = int(span.split("-")[0]) if span != "*" else len(data)
    data[first : first + len(body)] = body
    if len(data) < int(size):
      return 308, None, {"Range": f"bytes=0-{len(data) - 1}"}
    self.store.put(name, bytes(data))
    return 200, self.store.about(name), {}


def _missing(name: str) -> tuple[int, dict, dict]:
  return 404, {"error": {"code": 404, "message": f"No such object or bucket: {name}"}}, {}
