"""The part of the Hub's HTTP protocol that `create_repo`, `upload_folder` and `from_pretrained` speak, on the loopback.

Repositories live in memory: a list of commits, each a whole tree of files. Every upload goes inside the commit itself
(uploadMode "regular"), so clients need HF_HUB_DISABLE_XET=1. One process, one thread per request, no access rights.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url`; `hub.repos[id]` is {"private", "commits": [(sha, files)]}."""

    def __init__(self):
        self.repos, self.requests = {}, []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repo_id, files, deleted=(), branch="main"):
        commits = self.repos[repo_id]["commits"]
        tree = {**(commits[-1][1] if commits else {}), **files}
        tree = {path: content for path, content in tree.items() if path not in deleted}
        sha = hashlib.sha1(f"{repo_id}{len(commits)}{branch}{sorted(tree)}".encode()).hexdigest()
        if branch == "main":
            commits.append((sha, tree))
        else:
            self.repos[repo_id]["branches"][branch] = (sha, tree)
        return sha

    def tree(self, repo_id, revision):
        """(sha, files) of a branch, commit or pull request; None when there is none."""
        repo = self.repos.get(repo_id)
        if repo is None or not repo["commits"]:
            return None
        if revision == "main":
            return repo["commits"][-1]
        by_sha = {sha: (sha, files) for sha, files in repo["commits"]}
        return by_sha.get(revision) or repo["branches"].get(revision)


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def do_HEAD(self):
        self.route()

    do_GET = do_POST = do_HEAD

    def route(self):
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        for pattern, method in ROUTES.items():
            if match := re.fullmatch(pattern, path):
                return method(self, **match.groupdict())
        return self.fail("NotFound")

    def reply(self, data, status=200, headers=()):
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **dict(headers),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, code, status=404, headers=()):
        self.reply({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code, **dict(headers)})

    def log_message(self, *_):
        pass

    def create(self):
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        status = 409 if repo_id in self.hub.repos else 200
        if status == 200:
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self.hub.repos[repo_id] = {"private": private, "commits": [], "branches": {}}
            self.hub.commit(repo_id, {".gitattributes": b""})
        self.reply({"url": f"{self.hub.url}/{repo_id}", "id": repo_id, "name": repo_id}, status)

    def whoami(self):
        self.reply({"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self):
        self.reply({"errors": [], "warnings": []})

    def info(self, repo_id, revision="main"):
        found = self.hub.tree(repo_id, revision)
        if found is None:
            return self.fail("RevisionNotFound" if repo_id in self.hub.repos else "RepoNotFound")
        sha, files = found
        siblings = [{"rfilename": name} for name in files]
        private = self.hub.repos[repo_id]["private"]
        return self.reply({"id": repo_id, "modelId": repo_id, "sha": sha, "private": private, "siblings": siblings})

    def list_tree(self, repo_id, revision, folder=""):
        found = self.hub.tree(repo_id, revision)
        if found is None:
            return self.fail("RevisionNotFound" if repo_id in self.hub.repos else "RepoNotFound")
        rows = []
        for name, content in found[1].items():
            if name.startswith(folder) and ("recursive" in self.query or "/" not in name.removeprefix(folder)):
                oid = hashlib.sha1(content).hexdigest()
                rows.append({"type": "file", "path": name, "size": len(content), "oid": oid})
        return self.reply(rows)

    def preupload(self, repo_id, revision):
        files = json.loads(self.body)["files"]
        self.reply({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})

    def receive_commit(self, repo_id, revision):
        added, deleted = {}, []
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                deleted.append(value["path"])
        asked = self.query.get("create_pr", ["0"])[0] in ("1", "true", "True")
        branch = "refs/pr/1" if asked else "main"
        sha = self.hub.commit(repo_id, added, deleted, branch)
        answer = {"success": True, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha}
        self.reply(answer | ({"pullRequestUrl": f"{self.hub.url}/{repo_id}/discussions/1"} if asked else {}))

    def resolve(self, repo_id, revision, name):
        found = self.hub.tree(repo_id, revision)
        if found is None:
            return self.fail("RevisionNotFound" if repo_id in self.hub.repos else "RepoNotFound")
        sha, files = found
        if name not in files:
            return self.fail("EntryNotFound", headers={"X-Repo-Commit": sha})
        etag = hashlib.sha1(files[name]).hexdigest()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        return self.reply(files[name], headers=headers)


REPO, REVISION = r"(?P<repo_id>[\w.-]+/[\w.-]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES = {
    "/api/repos/create": HubHandler.create,
    "/api/whoami-v2": HubHandler.whoami,
    "/api/validate-yaml": HubHandler.validate,
    f"/api/models/{REPO}": HubHandler.info,
    f"/api/models/{REPO}/revision/{REVISION}": HubHandler.info,
    f"/api/models/{REPO}/tree/{REVISION}": HubHandler.list_tree,
    f"/api/models/{REPO}/tree/{REVISION}/(?P<folder>.+)": HubHandler.list_tree,
    f"/api/models/{REPO}/preupload/{REVISION}": HubHandler.preupload,
    f"/api/models/{REPO}/commit/{REVISION}": HubHandler.receive_commit,
    f"/{REPO}/resolve/{REVISION}/(?P<name>.+)": HubHandler.resolve,
}
