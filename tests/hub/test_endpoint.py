"""handler.py of a repo, started as huggingface-inference-toolkit 0.5 starts it: a folder, no package of ours."""

import base64
import json
import re

import pytest
from conftest import REPOSITORY
from PIL import Image
from test_hub import WITHOUT_PACKAGE, answer, run_python

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.hub import ENDPOINT, PACKAGE, check_repo

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
        {"inputs": str(photo)},
        {"inputs": encoded, "parameters": {"custom_generate": "someone/else"}},
    ]
    (tmp_path / "home").mkdir()
    script, options = WITHOUT_PACKAGE + AS_THE_TOOLKIT, json.dumps({"bodies": bodies})
    process = run_python(script, MINI, photo, options, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    plain, two_beams, matches, answers, path, unknown = answer(process)
    pipe = MengziOscarPipeline.from_pretrained(MINI)
    expected = pipe.caption(photo)
    assert plain["caption"] == expected["caption"]
    assert plain["score"] == pytest.approx(expected["score"], rel=1e-4)
    assert len(two_beams["captions"]) == 2
    assert [row["text"] for row in matches] == ["一只狗", "两个人"]
    assert len(answers[0]) == 2
    assert "not a photo" in answers[1]["error"]
    assert re.search("not a photo|base64", path)  # which is what a path is read as; it is never opened
    assert unknown.startswith("parameters: 'custom_generate' is none of texts, question, top, style")


def test_only_repos_with_pipelines_have_it(tiny_checkpoint):
    assert set(ENDPOINT) <= {str(name) for name in check_repo(tiny_checkpoint)}
    assert len((PACKAGE / "handler.py").read_text("utf-8").splitlines()) <= 30


def test_what_an_endpoint_installs_is_what_setup_says():
    """Bounds of the same libraries; torch is in the image."""
    setup = (REPOSITORY / "setup.cfg").read_text("utf-8")
    for line in (PACKAGE / "requirements.txt").read_text("utf-8").splitlines():
        assert f"\n    {line.replace('>=', ' >= ')}\n" in setup or f"\n    {line} >= " in setup, line
