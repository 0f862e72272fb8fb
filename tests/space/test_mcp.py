"""The demo's tools as an agent finds and calls them, with the client of the `mcp` package."""

import ast
import asyncio
import json

import pytest
from test_pipeline import with_heads  # noqa: F401  (a fixture)

pytest.importorskip("gradio", reason='the demo needs gradio: pip install -e ".[space]"')
mcp = pytest.importorskip("mcp", reason='MCP needs gradio[mcp]: pip install -e ".[space]"')
import httpx  # noqa: E402
import jsonschema  # noqa: E402  (mcp brings it)
from mcp.client.streamable_http import streamable_http_client  # noqa: E402
from test_space import ENDPOINTS, data_address, encoded, engine, noise, url, zipped  # noqa: E402, F401  (fixtures)


def ask_tools(url, *calls):  # noqa: F811
    """(tools by name, answers) of one session. A call is a name and its arguments."""

    async def talk():
        async with (
            streamable_http_client(f"{url}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            return {tool.name: tool for tool in tools}, [await session.call_tool(*call) for call in calls]

    return asyncio.run(talk())


def read(answer) -> dict:
    """The first text of an answer: gradio writes Python's notation."""
    assert not answer.isError, answer.content[0].text
    return ast.literal_eval(answer.content[0].text)


def mistake(answer) -> str:
    assert answer.isError
    return answer.content[0].text


@pytest.fixture
def uploaded(url):  # noqa: F811
    """(path, address) of a photo as gradio's upload tool hands it to an agent."""
    [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(noise()))}).json()
    return path, f"{url}/gradio_api/file={path}"


def test_every_tool_has_a_whole_schema_and_says_what_it_wants(url):  # noqa: F811
    tools, _ = ask_tools(url)
    assert {f"/{name}" for name in tools} == ENDPOINTS
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.inputSchema)
        assert "$ref" not in json.dumps(tool.inputSchema)
        assert tool.description
        for name, told in tool.inputSchema["properties"].items():
            assert told["type"] in ("string", "integer", "number", "boolean", "array"), name
            assert told["description"], name
            assert told["type"] != "array" or told["items"] == {"type": "string"}
    assert tools["match"].inputSchema["required"] == ["photo", "sentences"]
    assert tools["caption"].inputSchema["required"] == ["photo"]


def test_every_tool_answers(url, uploaded):  # noqa: F811
    """With photos inside the call, by the path of an upload and by its address; the answers fit into a conversation."""
    photo = data_address()
    _, answers = ask_tools(
        url,
        *[("caption", {"photo": one}) for one in (photo, *uploaded)],
        ("match", {"photo": photo, "sentences": ["一只狗在草地上跑", "猫"]}),
        ("rank", {"sentence": "一只狗", "photos": [photo, *uploaded, data_address(noise(seed=1))]}),
        ("rank", {"sentence": "一只狗", "photos": [data_address(noise(8, 8))] * 60}),
        ("rank", {"sentence": "一只狗", "top": 5}),
        ("ask", {"photo": photo, "question": "有只狗？"}),
        ("batch", {"files": [photo, *uploaded]}),
    )
    assert all(len(answer.content) == 1 and len(answer.content[0].text) < 2000 for answer in answers)
    *captions, match, rank, many, samples, ask, batch = map(read, answers)
    assert len({one["caption"] for one in captions}) == 1
    assert len(captions[0]["captions"]) == 3  # as the checkpoint says
    assert {one["text"] for one in match["matches"]} == {"一只狗在草地上跑", "猫"}
    assert sorted(one["photo"] for one in rank["matches"]) == ["a.png", "a.png", "photo 1", "photo 4"]
    assert len(many["matches"]) == 10
    assert len(samples["matches"]) == 5
    assert len(ask["answers"]) == 5
    assert [row["caption"] for row in batch["rows"]] == [captions[0]["caption"]] * 3


def test_a_zip_that_was_uploaded(url):  # noqa: F811
    content = zipped({f"{i}.png": encoded(noise(seed=i)) for i in range(2)})
    [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("photos.zip", content)}).json()
    _, [answer] = ask_tools(url, ("batch", {"files": [f"{url}/gradio_api/file={path}"]}))
    assert [row["file"] for row in read(answer)["rows"]] == ["0.png", "1.png"]


def test_details_only_when_asked_for(url):  # noqa: F811
    settings = {"photo": data_address(), "num_beams": 10, "max_length": 30, "temperature": 2}
    _, [short, long] = ask_tools(url, ("caption", settings), ("caption", settings | {"details": True}))
    assert {"caption", "captions", "tags", "objects", "seconds"} == set(read(short))
    assert len(short.content[0].text) < 1500 < len(long.content[0].text)
    assert read(long)["captions"][0]["words"][0]["region_weights"]


def test_agents_name_no_files_and_no_addresses(url, with_heads):  # noqa: F811
    """Of the server and of others; the fixture fails when anybody is looked for."""
    elsewhere = [
        "https://example.com/a.jpg",
        "HTTP://169.254.169.254/latest",
        "https://example.com/?/gradio_api/file=/etc/passwd",
    ]
    here = [
        "/etc/passwd",
        f"{with_heads}/config.json",
        "../../../etc/passwd",
        "file:///etc/passwd",
        f"{url}/gradio_api/file=/etc/passwd",
        f"{url}/gradio_api/file=%2fetc%2fpasswd",
        "a\0.png",
    ]
    calls = [call for one in elsewhere + here for call in (("caption", {"photo": one}), ("batch", {"files": [one]}))]
    _, answers = ask_tools(url, *calls)
    told = [mistake(answer) for answer in answers]
    assert all("does not fetch" in text for text in told[: 2 * len(elsewhere)])
    assert all("Upload the file itself" in text for text in told[2 * len(elsewhere) :])


def test_mistakes_are_told_in_a_line(url):  # noqa: F811
    photo = data_address()
    wrong = {
        "damaged": ("caption", {"photo": "data:image/png;base64,???"}),
        "not a photo": ("caption", {"photo": "data:image/png;base64,AAAA"}),
        "num_beams must be": ("caption", {"photo": photo, "num_beams": 11}),
        "temperature must be": ("caption", {"photo": photo, "temperature": -0.1}),
        "Write a sentence": ("match", {"photo": photo, "sentences": []}),
        "201 characters": ("ask", {"photo": photo, "question": "人" * 201}),
        "some photos": ("batch", {"files": []}),
        "is not of type 'array'": ("match", {"photo": photo, "sentences": "猫"}),
        "required property": ("ask", {"photo": photo}),
        "nothing": ("nothing", {}),
    }
    _, answers = ask_tools(url, *wrong.values())
    for expected, answer in zip(wrong, answers, strict=True):
        assert expected in mistake(answer)
        assert len(mistake(answer)) < 500
        assert "Traceback" not in mistake(answer)
