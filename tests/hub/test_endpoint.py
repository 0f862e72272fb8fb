"""handler.py of a repo, started as huggingface-inference-toolkit 0.5 starts it: a folder, no package of ours."""

import base64
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import REPOSITORY
from PIL import Image
from test_hub import WITHOUT_PACKAGE, answer, run_python
from transformers import pipeline

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.hub import ENDPOINT, PACKAGE, check_repo
from modeling_mengzi_oscar.photos import sent_photo

MINI = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"
# The steps of the toolkit's `check_and_register_custom_pipeline_from_directory`, then what its web service does with
# bodies: JSON is read, image/* opened by Pillow, the result written as JSON, an exception's text sent with status 400.
AS_THE_TOOLKIT = """
import importlib.util
torch.cpu.get_capabilities = dict  # dtype="auto" is float32 on every machine
from PIL import Image
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", repo + "/handler.py")
sys.path.insert(0, repo)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(repo)
answers = []
for body in [Image.open(photo).convert("RGB"), *options["bodies"]]:
    try:
        answers.append(json.loads(json.dumps(handler(body if isinstance(body, dict) else {"inputs": body}))))
    except Exception as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def test_requests_are_captioned_matched_and_answered(tmp_path):
    photo = tmp_path / "photo.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(photo)
    encoded = base64.b64encode(photo.read_bytes()).decode()
    bodies = [
        {"inputs": "data:image/png;base64," + encoded, "parameters": {"num_beams": 2}},
        {"inputs": encoded, "parameters": {"texts": ["一只狗", "两个人"]}},
        {"inputs": [encoded, "bm8gcGhvdG8="], "parameters": {"question": "有几个人？", "top": 2}},
        {"inputs": encoded, "parameters": {"custom_generate": "someone/else"}},
        {"inputs": {"image": encoded, "question": "有几个人？"}},  # as the Hub asks
        {"inputs": encoded, "question": "有几个人？"},
    ]
    (tmp_path / "home").mkdir()
    script, options = WITHOUT_PACKAGE + AS_THE_TOOLKIT, json.dumps({"bodies": bodies})
    process = run_python(script, MINI, photo, options, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    plain, two_beams, matches, answers, unknown, *asked = answer(process)
    pipe = MengziOscarPipeline.from_pretrained(MINI)
    expected = pipe.caption(photo)
    assert plain["caption"] == expected["caption"]
    assert plain["score"] == pytest.approx(expected["score"], rel=1e-4)
    assert len(two_beams["captions"]) == 2
    assert [row["text"] for row in matches] == ["一只狗", "两个人"]
    assert len(answers[0]) == 2
    assert "not a photo" in answers[1]["error"]
    assert unknown.startswith("parameters: 'custom_generate' is none of caption's: style, num_beams")
    assert [len(one) for one in asked] == [5, 5]


@pytest.fixture(scope="module")
def endpoint():
    return pipeline("mengzi-oscar-captioning", model=str(MINI), trust_remote_code=True)


@pytest.mark.parametrize("path", ["{}", "file://{}", {"path": "{}"}, {"path": "{}", "bytes": None}, {"image": "{}"}])
def test_no_request_reads_files_of_the_server(path, endpoint, tmp_path):
    """However JSON names one: alone, in a list, beside a photo."""
    photo = tmp_path / "photo"
    Image.new("RGB", (64, 64)).save(photo, "PNG")
    path = json.loads(json.dumps(path).replace("{}", str(photo)))
    with pytest.raises(ValueError, match="base64|not a photo|is none of caption's"):
        endpoint.answer_request({"inputs": path})
    [in_a_list] = endpoint.answer_request({"inputs": [path]})
    assert "base64" in in_a_list["error"] or "not a photo" in in_a_list["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the photo: NoneType in its place"),
        ({"inputs": 5}, "the photo: int in its place"),
        ({"inputs": "a"}, "the photo: is not in base64"),
        ({"inputs": "https://example.com/a.jpg"}, "the photo: addresses are not fetched"),
        ({"inputs": "", "parameters": [1]}, "parameters: a list; send a JSON object"),
        ({"inputs": "", "parameters": {"texts": ["一只狗"], "top": 1}}, "'top' is none of match's: texts"),
        ({"inputs": "", "colour": "red"}, "'colour' is none of caption's"),
    ],
)
def test_a_request_that_cannot_work_gets_a_line(body, message, endpoint):
    with pytest.raises(ValueError, match=message):
        endpoint.answer_request(body)


def test_the_example_of_the_page(endpoint, tmp_path, monkeypatch, capsys):
    """docs/endpoints.md, against a server that answers as the platform does."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(endpoint.answer_request(body)).encode())

        def log_message(self, *arguments):
            pass

    page = (REPOSITORY / "docs" / "endpoints.md").read_text("utf-8")
    [lines] = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        exec(lines, {"URL": f"http://127.0.0.1:{server.server_port}", "TOKEN": "none"})
        server.shutdown()
    assert capsys.readouterr().out.strip() == endpoint("photo.jpg")["caption"]


def test_base64_of_every_kind(tmp_path):
    content = bytes(range(256))
    plain, of_urls = base64.b64encode(content).decode(), base64.urlsafe_b64encode(content).decode()
    for text in (
        plain,
        of_urls,
        plain.rstrip("="),
        base64.encodebytes(content).decode(),
        f"data:image/png;base64,{plain}",
    ):
        assert sent_photo(text) == content


def test_only_repos_with_pipelines_have_it(tiny_checkpoint):
    assert set(ENDPOINT) <= {str(name) for name in check_repo(tiny_checkpoint)}
    assert len((PACKAGE / "handler.py").read_text("utf-8").splitlines()) <= 30


def test_what_an_endpoint_installs_is_what_setup_says():
    """Bounds of the same libraries; torch is in the image."""
    setup = (REPOSITORY / "setup.cfg").read_text("utf-8")
    for line in (PACKAGE / "requirements.txt").read_text("utf-8").splitlines():
        assert f"\n    {line.replace('>=', ' >= ')}\n" in setup or f"\n    {line} >= " in setup, line
