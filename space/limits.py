"""What the server takes and for how long: which routes, how large and how slow a body, how many calls at once."""

import asyncio
import logging
import re
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from gradio.utils import get_upload_folder
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from words import UserError

MAX_QUEUE = 64  # calls that wait for the model, whatever route they came by
MAX_AGENTS = 8  # MCP calls in flight: each holds a thread until it is answered
MAX_BODY = 4 * 2**20  # bytes of JSON; a photo inside it, as MCP clients send it, may have three quarters of that
MAX_BODIES = 64 * 2**20  # bytes of all that are being received
MAX_UPLOAD = 2**30  # bytes of one upload, of many files
MAX_FIELDS = 64 * 2**10  # of these, bytes that belong to no file: gradio keeps them in memory
MIN_FREE = 2**30  # bytes of the disk that uploads leave free
KEPT = 3600  # seconds after which the file of an upload that broke off goes
PATIENCE, SLOWEST = 30, 16 * 2**10  # seconds, then bytes per second that a body must come with at least
MAX_CONNECTIONS = 512
MAX_LINE = 2000  # characters of the log that one message may take

UPLOAD, AGENTS = r"/gradio_api/upload/?$", r"/gradio_api/mcp(/http)?/?$"
POSTED = rf"{UPLOAD}|{AGENTS}|/gradio_api/(call(/v2)?/[^/]+|(run|api)/[^/]+|queue/join|cancel|reset)/?$"
# gradio fetches the address of file=https://… and hands on what it finds; the old transport of MCP counts no calls
CLOSED = r"/file[=/]\s*https?:|/gradio_api/mcp/(sse|messages)(/|$)"


class _Limits:
    """Refuses with one line, before the body is read, what the demo never needs or what would take too much.

    With `Blocks.queue(api_open=False)` all calls to the model wait in one queue: /call, /queue/join and, through the
    latter, MCP. Gradio bounds files, not what is around them, and waits for a slow body as long as it takes.
    """

    def __init__(self, app):
        self.app = app
        self.agents = self.bytes = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            headers = dict(scope["headers"])
            with self.admitted(scope["path"], scope["method"], headers) as limit:
                look = FilesOnly(headers).write if re.search(UPLOAD, scope["path"]) else None
                await self.app(scope, bounded(receive, limit, look), in_our_words(send))
        except HTTPException as refused:
            await answer(send, refused.status_code, refused.detail)
        except Exception as error:  # no such function or parameter: a failure to gradio
            if scope["method"] != "POST":
                raise
            logging.warning("%s does not fit: %s %.200r", scope["path"][:80], type(error).__name__, str(error))
            await answer(send, 400, UserError("bad_request").message)

    @contextmanager
    def admitted(self, path, method, headers):
        """While the request is answered; gives the bytes that its body may have.

        Raises:
            HTTPException: it asks for what is closed, is too large, or there are too many like it.
        """
        if re.search(CLOSED, path, re.IGNORECASE):
            raise refusal(403, "no_links" if "file" in path else "no_route")
        if method == "POST" and not re.search(POSTED, path):
            raise refusal(404, "no_route")
        upload = re.search(UPLOAD, path) is not None
        limit = MAX_UPLOAD if upload else MAX_BODY
        length = int(headers.get(b"content-length", limit if b"transfer-encoding" in headers else 0))
        check_size(length, limit)
        agent = method == "POST" and re.search(AGENTS, path) is not None
        if upload:
            make_room(length)
        held = 0 if upload else length  # gradio writes uploads to files as they come
        if self.bytes + held > MAX_BODIES or self.agents + agent > MAX_AGENTS:
            raise refusal(503, "busy")
        self.bytes, self.agents = self.bytes + held, self.agents + agent
        try:
            yield limit
        finally:
            self.bytes, self.agents = self.bytes - held, self.agents - agent


def check_size(size, limit):
    if size > limit:
        raise refusal(413, "body_too_large", limit=limit // 2**20)


def make_room(size) -> None:
    """Before an upload: gradio forgets the files of those that broke off.

    Raises:
        HTTPException: the disk is too full for it.
    """
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("tmp*"):
        with suppress(OSError):
            if file.is_file() and time.time() - file.stat().st_mtime > KEPT:
                file.unlink()
    if shutil.disk_usage(folder).free < size + MIN_FREE:
        raise refusal(507, "no_room")


class FilesOnly:
    """Looks through an upload as it comes, for what belongs to no file: gradio keeps that in memory, however much."""

    def __init__(self, headers):
        calls = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data")
        boundary = parse_options_header(headers.get(b"content-type"))[1].get(b"boundary", b"-")
        self.write = MultipartParser(boundary, {f"on_{call}": getattr(self, call) for call in calls}).write
        self.size = 0

    def part_begin(self):
        self.name = self.value = self.disposition = b""

    def header_field(self, data, start, end):
        self.name += data[start:end]

    def header_value(self, data, start, end):
        self.value += data[start:end]

    def header_end(self):
        if self.name.lower() == b"content-disposition":
            self.disposition = self.value
        self.name = self.value = b""

    def headers_finished(self):
        self.file = b"filename" in parse_options_header(self.disposition)[1]

    def part_data(self, data, start, end):
        self.size += 0 if self.file else end - start
        if self.size > MAX_FIELDS:
            raise refusal(413, "only_files")


def bounded(receive, limit, look=None):
    """`receive` of a request whose body has at most `limit` bytes and comes as fast as it must; `look` sees its pieces.

    Raises:
        HTTPException: when it is received.
    """
    begun, seen, complete = time.monotonic(), 0, False

    async def receive_bounded():
        nonlocal seen, complete
        if complete:  # gradio waits here for the caller to leave
            return await receive()
        left = begun + PATIENCE + seen / SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), left)
        except TimeoutError:
            raise refusal(408, "body_too_slow") from None
        seen += len(message.get("body", b""))
        check_size(seen, limit)
        if look and message.get("body"):
            look(message["body"])
        complete = not message.get("more_body")
        return message

    return receive_bounded


def in_our_words(send):
    """What gradio says of a full queue, and of a body that is not what it wants, which it would send back whole."""
    words = {503: "busy", 422: "bad_request"}
    ours = None

    async def send_ours(message):
        nonlocal ours
        if message["type"] == "http.response.start" and message["status"] in words:
            ours = message["status"]
        if not ours:
            await send(message)
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            await answer(send, ours, UserError(words[ours]).message)

    return send_ours


def refusal(status, key, **values) -> HTTPException:
    return HTTPException(status, UserError(key, **values).message)


async def answer(send, status, line):
    await JSONResponse({"detail": line}, status)({"type": "http"}, None, send)


Limits = Middleware(_Limits)


def limit_connections(server) -> None:
    """For uvicorn, as gradio starts it: it closes a connection that idles after an answer, but waits for good for a
    request that never comes or never ends, and takes as many connections as the system has files.

    Args:
        server: `Blocks.server`, running.
    """
    protocol = server.config.http_protocol_class

    class Impatient(protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.loop.call_later(PATIENCE, self.look, self.cycle)

        def look(self, before):
            """Closes the connection where nothing was asked for since the last look."""
            if self.transport.is_closing():
                return
            if self.cycle is before and (self.cycle is None or self.cycle.response_complete):
                self.transport.close()
            else:
                self.loop.call_later(PATIENCE, self.look, self.cycle)

    server.config.http_protocol_class = Impatient
    server.config.limit_concurrency = MAX_CONNECTIONS


class ShortLines:
    """A stream for the log, in which no message, such as one that quotes what a caller sent, takes more than `MAX_LINE`
    characters."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        if len(text) > MAX_LINE:
            text = f"{text[: MAX_LINE // 2]} … {text[-MAX_LINE // 2 :]}"
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)
