"""The demo's doors: one queue by every route, bodies that are too large, too slow or not what they should be, callers
that say nothing, and a log that stays short. The limits are lowered, so that a handful of callers is too many."""

import io
import itertools
import os
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_pipeline import with_heads  # noqa: F401  (a fixture)

pytest.importorskip("gradio", reason='the demo needs gradio: pip install -e ".[space]"')
import app
import httpx
import limits
from engine import Engine
from gradio.utils import get_upload_folder
from test_space import busy, data_address
from words import WORDS

MAX_QUEUE, RUNNING = 3, 2  # calls that wait, captions that run
MIB = 2**20


@pytest.fixture(scope="module")
def demo(with_heads):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "MAX_QUEUE", MAX_QUEUE)
        patch.setattr(app, "MAX_BATCH", RUNNING // 2)
        demo = app.build(Engine(str(with_heads)))
        app.start(demo, quiet=True)
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def url(demo):
    return demo.local_url.rstrip("/")


@pytest.fixture(scope="module")
def thread(demo):
    [function] = [fn.fn for fn in demo.fns.values() if fn.api_name == "caption"]
    return function.__wrapped__.__self__.engine.thread


def in_words(key) -> str:
    return "{1} / {0}".format(*WORDS[key])


def post(url, route, body, **options):
    return httpx.post(f"{url}/gradio_api/{route}", json=body, timeout=60, **options)


def by_route(demo, url, route, session):
    """A caption asked for by one of the routes that lead to the model."""
    inputs = [data_address(), 2, 8, 0, False]
    if route == "queue/join":
        [index] = [index for index, fn in demo.fns.items() if fn.api_name == "caption"]
        return post(url, route, {"data": inputs, "fn_index": index, "session_hash": session})
    if route == "call/v2/caption":
        return post(url, route, {"photo": inputs[0], "num_beams": 2, "max_length": 8})
    return post(url, route, {"data": inputs})


def by_mcp(url):
    call = {"name": "caption", "arguments": {"photo": data_address(), "num_beams": 2, "max_length": 8}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    return post(url, "mcp/", message, headers={"accept": "application/json, text/event-stream"})


def outcome(url, asked, session) -> str:
    """Waits for the answer of a call that was let in."""
    if session:
        return httpx.get(f"{url}/gradio_api/queue/data", params={"session_hash": session}, timeout=60).text
    return httpx.get(f"{url}/gradio_api/call/caption/{asked.json()['event_id']}", timeout=60).text


def test_one_queue_for_every_route(demo, url, thread):
    """Whatever the route: so many run, so many wait, all others are told so at once and need not ask again to know."""
    routes = itertools.cycle(["call/caption", "queue/join", "call/v2/caption"])
    let_in, refused = [], []
    with busy(thread) as done:
        for number, route in zip(range(12), routes, strict=False):
            session = f"session {number}" if route == "queue/join" else None
            begun = time.monotonic()
            asked = by_route(demo, url, route, session)
            if asked.status_code == 200:
                let_in.append((asked, session))
                time.sleep(0.1)  # until it runs, while there is room to run
            else:
                refused.append((route, asked.status_code, asked.json()["detail"], time.monotonic() - begun < 5))
        assert len(let_in) == RUNNING + MAX_QUEUE
        agents = by_mcp(url)  # through its own client of the same queue
        done.set()
        answers = [outcome(url, *call) for call in let_in]
    assert {route for route, *_ in refused} == {"call/caption", "queue/join", "call/v2/caption"}
    assert {tuple(told) for _, *told in refused} == {(503, in_words("busy"), True)}
    assert "Queue is full" in agents.text
    assert all("event: complete" in answer or '"success":true' in answer for answer in answers)


@pytest.mark.parametrize("route", ["run/caption", "api/caption", "api/predict", "run/predict/", "run/caption/"])
def test_no_way_around_the_queue(demo, url, route):
    for body in ({"data": [data_address()]}, {"data": [data_address()], "fn_index": len(demo.fns) - 1}):
        answer = post(url, route, body)
        assert answer.status_code in (400, 404), answer.text
        assert 'caption"' not in answer.text


def test_routes_that_the_demo_does_not_need_are_shut(url):
    for route in ("component_server", "process_recording", "vibe-edit/", "stream/1", "mcp/messages/?session_id=1"):
        assert post(url, route, {"data": []}).json() == {"detail": in_words("no_route")}, route
    assert httpx.get(f"{url}/gradio_api/mcp/sse").status_code == 403
    assert httpx.post(f"{url}/api/predict", json={"data": []}).status_code == 404


def test_agents_are_counted(url, thread, monkeypatch):
    monkeypatch.setattr(limits, "MAX_AGENTS", 2)
    with ThreadPoolExecutor(3) as pool, busy(thread) as done:
        inside = [pool.submit(by_mcp, url) for _ in range(2)]
        time.sleep(1)
        outside = pool.submit(by_mcp, url).result(timeout=20)
        done.set()
        inside = [call.result().text for call in inside]
    assert (outside.status_code, outside.json()) == (503, {"detail": in_words("busy")})
    assert all('"isError":false' in text for text in inside)


def too_large(megabytes) -> str:
    return in_words("body_too_large").format(limit=megabytes)


def test_bodies_have_a_size(url, monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY", MIB)
    monkeypatch.setattr(limits, "MAX_UPLOAD", MIB)
    body = {"data": ["x" * MIB]}
    for route in ("call/caption", "call/v2/caption", "queue/join", "run/caption", "cancel", "reset", "mcp/", "mcp"):
        answer = post(url, route, body)
        assert (answer.status_code, answer.json()) == (413, {"detail": too_large(1)}), route
    for route in ("call/caption", "queue/join"):  # whose size is not told
        pieces = httpx.post(f"{url}/gradio_api/{route}", content=(b"x" * 2**16 for _ in range(32)))
        assert (pieces.status_code, pieces.json()) == (413, {"detail": too_large(1)}), route
    file = {"files": ("a.png", bytes(MIB))}
    assert httpx.post(f"{url}/gradio_api/upload", files=file).status_code == 413


def test_an_upload_holds_files_only(url):
    """What else is in it would be kept in memory; also where it is called a file in the wrong header."""
    file = {"files": ("a.png", bytes(4 * limits.MAX_FIELDS))}
    assert httpx.post(f"{url}/gradio_api/upload", files=file, data={"a": "few"}).status_code == 200
    answer = httpx.post(f"{url}/gradio_api/upload", files=file, data={"a": "x" * limits.MAX_FIELDS, "b": "x"})
    assert (answer.status_code, answer.json()) == (413, {"detail": in_words("only_files")})
    head = b'--b\r\nContent-Disposition: form-data; name="a"\r\nX-a: form-data; filename="b"\r\n\r\n'
    content = head + bytes(2 * limits.MAX_FIELDS) + b"\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert httpx.post(f"{url}/gradio_api/upload", content=content, headers=kind).status_code == 413
    assert httpx.post(f"{url}/gradio_api/upload", content=b"no form", headers=kind).status_code == 400


def test_uploads_leave_room_on_the_disk_and_nothing_that_broke_off(url, monkeypatch):
    folder = Path(get_upload_folder())
    stale, fresh = folder / "tmp_stale", folder / "tmp_fresh"
    for left in (stale, fresh):
        left.write_bytes(b"half a photo")
    os.utime(stale, times=(0, 0))
    file = {"files": ("a.png", b"a")}
    assert httpx.post(f"{url}/gradio_api/upload", files=file).status_code == 200
    assert not stale.exists()
    assert fresh.exists()
    fresh.unlink()
    monkeypatch.setattr(limits, "MIN_FREE", 2**60)
    answer = httpx.post(f"{url}/gradio_api/upload", files=file)
    assert (answer.status_code, answer.json()) == (507, {"detail": in_words("no_room")})


def test_all_bodies_together_have_a_size(url, monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODIES", MIB)
    with slow(url, "call/caption", MIB - 100):
        time.sleep(0.3)
        answer = post(url, "call/caption", {"data": ["x" * 200]})
    assert (answer.status_code, answer.json()) == (503, {"detail": in_words("busy")})
    time.sleep(0.3)
    assert post(url, "call/caption", {"data": ["x" * 200]}).status_code == 200


def connect(url, sent=b""):
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20)
    connection.sendall(sent)
    return connection


def slow(url, route, length):
    """A request of which only the first byte comes."""
    head = f"POST /gradio_api/{route} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    return connect(url, head.encode() + f"content-length: {length}\r\n\r\n{{".encode())


def test_who_says_nothing_is_let_go(url, thread, monkeypatch):
    """And who waits for an answer is not."""
    monkeypatch.setattr(limits, "PATIENCE", 0.5)
    form = b"content-type: multipart/form-data; boundary=b\r\ncontent-length: 999\r\n\r\n--b\r\n"
    with ThreadPoolExecutor(1) as pool, busy(thread) as done:
        waiting = pool.submit(outcome, url, by_route(None, url, "call/caption", None), None)
        silent = [connect(url), connect(url, b"GET / HT"), connect(url, b"GET / HTTP/1.1\r\nhost: a\r\n")]
        bodies = [slow(url, "call/caption", 1000), slow(url, "queue/join", 1000)]
        bodies += [connect(url, b"POST /gradio_api/upload HTTP/1.1\r\nhost: a\r\n" + form)]
        begun = time.monotonic()
        assert [connection.recv(1000) for connection in silent] == [b"", b"", b""]
        for connection in bodies:
            answer = b"".join(iter(lambda connection=connection: connection.recv(1000), b""))
            assert answer.startswith(b"HTTP/1.1 408")
            assert answer.decode("utf-8").endswith(f'{{"detail":"{in_words("body_too_slow")}"}}')
        assert time.monotonic() - begun < 10
        done.set()
        assert "event: complete" in waiting.result()
    for connection in silent + bodies:
        connection.close()


WRONG_BODIES = [
    ("call/caption", {"data": "x" * MIB}),
    ("call/caption", {"data": ["x" * MIB]}),
    ("call/caption", {"data": [{"path": "x" * MIB, "meta": {"_type": "gradio.FileData"}}]}),
    ("call/caption", {"data": [{"path": {"a": "x" * MIB}, "meta": {"_type": "gradio.FileData"}}]}),
    ("call/caption", {"x" * MIB: 1}),
    ("call/ask", {"data": [None, "x" * MIB]}),
    ("call/match", {"data": [None, {"a": "x" * MIB}]}),
    ("call/" + "x" * 1000, {"data": ["x" * MIB]}),
    ("call/v2/caption", {"x" * MIB: 1}),
    ("call/v2/nothing", {"photo": "x" * MIB}),
    ("queue/join", {"data": ["x" * MIB], "fn_index": 999, "session_hash": "a"}),
    ("queue/join", {"data": ["x" * MIB], "fn_index": 0, "session_hash": "a", "event_data": "x" * MIB}),
    ("cancel", {"data": "x" * MIB}),
    ("mcp/", "x" * MIB),
    ("mcp/", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x" * MIB, "arguments": {}}}),
]


def test_nothing_that_is_sent_fills_the_log(url, capfd, caplog, monkeypatch):
    """Nor comes back: an answer is one line. Bodies of 15 MiB leave a few lines, none of them long."""
    log = io.StringIO()
    accept = {"accept": "application/json, text/event-stream"}
    for route, body in WRONG_BODIES:
        answer = post(url, route, body, headers=accept)
        if route != "mcp/":  # whose own library tells an agent which tool it asked for
            assert len(answer.text) < 500, route
            assert answer.status_code in (200, 400, 422), answer.text
        if "event_id" in answer.text and "call" in route:
            assert len(outcome(url, answer, None)) < 1000
    written = limits.ShortLines(log)
    for record in caplog.records:
        written.write(record.getMessage())
    assert len(log.getvalue() + "".join(capfd.readouterr())) < 20_000
    assert "Traceback" not in caplog.text


def test_a_message_of_the_log_is_cut_in_its_middle():
    log = io.StringIO()
    print("begin" + "x" * MIB + "end", file=limits.ShortLines(log))
    print("short", file=limits.ShortLines(log))
    assert len(log.getvalue()) < limits.MAX_LINE + 20
    assert log.getvalue().startswith("begin")
    assert log.getvalue().endswith("end\nshort\n")


@pytest.mark.parametrize("part", ["config.json", "match/config.json"])
def test_a_damaged_checkpoint_ends_the_start_in_one_line(with_heads, tmp_path, capsys, part):  # noqa: F811
    folder = shutil.copytree(with_heads, tmp_path / "model")
    (folder / part).write_text("[1, 2]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_ID", str(folder))
        for stream in ("stdout", "stderr"):  # the demo puts its own in their place
            patch.setattr(sys, stream, getattr(sys, stream))
        with pytest.raises(SystemExit) as ended:
            app.main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"MODEL_ID: {folder / part}: holds a list; a JSON object is needed"
