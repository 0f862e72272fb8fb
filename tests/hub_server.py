"""The part of the Hub's HTTP protocol that uploads, `from_pretrained` and `load_dataset` speak, on the loopback.

Repositories live in memory: a list of commits, each a whole tree of files. Parquet and safetensors files are uploaded
by Git LFS, the others inside the commit, so clients need HF_HUB_DISABLE_XET=1. Files can be read by ranges. One
process, one thread per request, no access rights. Names of dataset repositories begin with "datasets/".
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url`; `hub.repos[id]` is {"private", "commits": [(sha, files)]}.

    `hub.requests` has every request with the range that it asked for; `hub.sent` counts the bytes of files that were
    read; when `hub.breaks_after` LFS files are there, if that is set, the server refuses one more, once.
    """

    def __init__(self):
        self.repos, self.requests, self.lfs_files = {}, [], {}
        self.sent, self.breaks_after = 0, None
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

    do_GET = do_POST = do_PUT = do_HEAD

    def route(self):
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(" ".join(filter(None, (self.command, path, self.headers.get("Range")))))
        path = re.sub(r"^/api/(models/|(?=datasets/))", "/api/repos/", path)  # ids of datasets keep their prefix
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
        prefix = "datasets/" if wanted.get("type") == "dataset" else ""
        repo_id = f"{prefix}{wanted.get('organization') or 'user'}/{wanted['name']}"
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
        name = repo_id.removeprefix("datasets/")
        return self.reply({"id": name, "modelId": name, "sha": sha, "private": private, "siblings": siblings})

    def list_tree(self, repo_id, revision, folder=""):
        found = self.hub.tree(repo_id, revision)
        if found is None:
            return self.fail("RevisionNotFound" if repo_id in self.hub.repos else "RepoNotFound")
        entries = described(found[1])
        if folder and folder not in entries:
            return self.fail("EntryNotFound")
        below = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", ["False"])[0] in ("1", "true", "True")
        names = [name for name in entries if name.startswith(below) and name != folder]
        return self.reply([entries[name] for name in names if recursive or "/" not in name.removeprefix(below)])

    def paths_info(self, repo_id, revision):
        found = self.hub.tree(repo_id, revision)
        if found is None:
            return self.fail("RevisionNotFound" if repo_id in self.hub.repos else "RepoNotFound")
        entries = described(found[1])
        return self.reply([entries[path] for path in parse_qs(self.body.decode())["paths"] if path in entries])

    def preupload(self, repo_id, revision):
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(LFS) else "regular" for file in files}
        self.reply({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def lfs_batch(self, repo_id):
        """Where to send the files that are not there yet."""
        objects = json.loads(self.body)["objects"]
        for one in objects:
            if one["oid"] not in self.hub.lfs_files:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_file(self, oid):
        if len(self.hub.lfs_files) == self.hub.breaks_after:
            self.hub.breaks_after = None
            return self.fail("Full", 403)
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.lfs_files[oid] = self.body
        return self.reply({})

    def receive_commit(self, repo_id, revision):
        added, deleted = {}, []
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                added[value["path"]] = self.hub.lfs_files[value["oid"]]
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
        content = files[name]
        etag = hashlib.sha1(content).hexdigest()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        self.hub.sent += len(content) if self.command == "GET" else 0
        return self.reply(content, 206 if wanted else 200, headers)


def described(files):
    """{path: what the Hub says of it} of files and the folders above them."""
    entries = {}
    for name, content in files.items():
        parts = name.split("/")
        for depth in range(1, len(parts)):
            path = "/".join(parts[:depth])
            entries[path] = {"type": "directory", "path": path, "oid": "0" * 40}
        entries[name] = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    return entries


LFS = (".parquet", ".safetensors")
REPO = r"(?P<repo_id>(?:datasets/)?[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES = {  # /api/models/ and /api/datasets/ came here as /api/repos/ and /api/repos/datasets/
    "/api/repos/create": HubHandler.create,
    "/api/whoami-v2": HubHandler.whoami,
    "/api/validate-yaml": HubHandler.validate,
    f"/api/repos/{REPO}": HubHandler.info,
    f"/api/repos/{REPO}/revision/{REVISION}": HubHandler.info,
    f"/api/repos/{REPO}/tree/{REVISION}": HubHandler.list_tree,
    f"/api/repos/{REPO}/tree/{REVISION}/(?P<folder>.+)": HubHandler.list_tree,
    f"/api/repos/{REPO}/paths-info/{REVISION}": HubHandler.paths_info,
    f"/api/repos/{REPO}/preupload/{REVISION}": HubHandler.preupload,
    f"/api/repos/{REPO}/commit/{REVISION}": HubHandler.receive_commit,
    f"/{REPO}.git/info/lfs/objects/batch": HubHandler.lfs_batch,
    r"/lfs/(?P<oid>\w+)": HubHandler.lfs_file,
    f"/{REPO}/resolve/{REVISION}/(?P<name>.+)": HubHandler.resolve,
}
