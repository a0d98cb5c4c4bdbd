"""A Hugging Face hub on this machine: as much of its protocol as fetching files takes."""

import contextlib
import hashlib
import http.server
import json
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serve(repositories):
    """Serves {"owner/name": folder}; yields its address and the list of paths asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.partition("?")[0].strip("/")
            asked.append(path)
            api = path.startswith("api/models/")
            parts = path.removeprefix("api/models/").split("/")
            folder = repositories.get("/".join(parts[:2]))
            if folder is None:
                return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            if parts[3:4] not in ([], ["main"], [COMMIT]):
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            if api:
                found = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
                files = [{"rfilename": name} for name in found]
                if parts[2:3] == ["tree"]:
                    files = [
                        {"type": "file", "path": name, "size": f.stat().st_size, "oid": etag(f)}
                        for name, f in found.items()
                    ]
                    return self.reply(200, json.dumps(files).encode(), {}, body)
                about = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": files}
                return self.reply(200, json.dumps(about).encode(), {}, body)
            file = folder.joinpath(*parts[4:])  # owner/name/resolve/REVISION/FILE
            if not file.is_file():
                return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return self.reply(200, file.read_bytes(), {"ETag": f'"{etag(file)}"'}, body)

        def reply(self, status, content, headers, body):
            self.send_response(status)
            for name, value in {"X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def etag(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()
