"""The contract in this environment, and what stands around it: overlays, the comparison of digits, the table."""

import copy
import json
import re

import pytest
from releases import matrix, overlays

REFERENCE = json.loads(matrix.REFERENCE.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_contract_with_what_is_installed():
    with matrix.repos() as folders:
        result = matrix.run_contract("installed", folders)
    assert matrix.failures(result, REFERENCE) == {}, result["log"][-5000:]


def held():
    """A result in which everything held."""
    checks = {name: {"reason": None, "seconds": 1, "digits": copy.deepcopy(REFERENCE[name])} for name in REFERENCE}
    versions = {"transformers": "5.5.4", "huggingface-hub": "1.33.0", "tokenizers": "0.22.2"}
    return {"versions": versions, "seconds": 20.4, "checks": checks}


def test_the_reference_holds():
    assert matrix.failures(held(), REFERENCE) == {}
    row = matrix.table_row(held(), REFERENCE, {})
    assert row.startswith(f"| 5.5.4 | 1.33.0 | 0.22.2 | {len(REFERENCE)}/{len(REFERENCE)} | 20 | ok | ok |")
    assert row.count("|") == matrix.table_head(REFERENCE).splitlines()[0].count("|")


def change(number):
    def apply(digits):
        digits["scores"][3] += number

    return apply


def other_token(digits):
    digits["ids"][2][4] += 1


def other_text(digits):
    digits["captions"][0] = digits["captions"][0].replace("。", "")


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (change(3e-4), r"scores\[3\]: -0\.\d+, the reference has -0\.\d+"),
        (other_token, r"ids\[2\]\[4\]: \d+, the reference has \d+"),
        (other_text, r"captions\[0\]: "),
        (lambda digits: digits.pop("scores"), r": \{"),
        (lambda digits: digits["ids"].pop(), r"ids: "),
        (lambda digits: digits["scores"].insert(0, float("nan")), r"scores: "),
        (lambda digits: digits["scores"].__setitem__(0, float("nan")), r"scores\[0\]: NaN"),
        (lambda digits: digits["scores"].__setitem__(0, None), r"scores\[0\]: null"),
    ],
)
def test_a_wrong_digit_fails(spoil, where):
    result = held()
    spoil(result["checks"]["beam_5"]["digits"])
    failed = matrix.failures(result, REFERENCE)
    assert list(failed) == ["beam_5"]
    assert re.match(f"other digits: {where}", failed["beam_5"])
    assert matrix.table_row(result, REFERENCE, failed).count("**failed**") == 1


def test_what_another_processor_rounds_does_not_fail():
    result = held()
    change(4e-5)(result["checks"]["beam_5"]["digits"])
    assert matrix.failures(result, REFERENCE) == {}


def test_a_check_that_failed_or_never_ran():
    result = held()
    result["checks"]["cache"]["reason"] = "AssertionError: other captions"
    del result["checks"]["vinvl"]
    failed = matrix.failures(result, REFERENCE)
    assert failed == {"cache": "AssertionError: other captions", "vinvl": "it did not run"}


def test_the_reference_has_every_check():
    """A check that is added to the contract needs digits, and the order of the columns."""
    text = (matrix.HERE / "contract.py").read_text(encoding="utf-8")
    assert re.findall(r"^@check\ndef (\w+)", text, flags=re.MULTILINE) == list(REFERENCE)


def test_a_release_that_does_not_exist_is_a_failed_row(monkeypatch, capsys, tmp_path):
    def no_index(*arguments):
        raise RuntimeError("pip install: No matching distribution found for transformers==5.99.0")

    monkeypatch.setattr(overlays, "pip", no_index)
    monkeypatch.setattr(overlays, "OVERLAYS", tmp_path)
    assert matrix.main(["5.99.0"]) == 1
    output = capsys.readouterr().out
    assert f"| 5.99.0 |  |  | 0/{len(REFERENCE)} | 0 | **failed** |" in output
    assert "5.99.0 whole: pip install: No matching distribution" in output
    assert "1 releases, 1 with failures" in output


def fake_pip(calls, requires=("tokenizers<=0.23.0,>=0.22.0",)):
    """Installs metadata only."""

    def pip(*arguments):
        calls.append(arguments)
        if "--target" in arguments:
            target = overlays.Path(arguments[arguments.index("--target") + 1])
            for name in ("transformers", "tokenizers", "huggingface_hub"):
                (target / f"{name}-9.9.dist-info").mkdir(parents=True, exist_ok=True)
                lines = [f"Name: {name}", "Version: 9.9", *(f"Requires-Dist: {line}" for line in requires)]
                (target / f"{name}-9.9.dist-info" / "METADATA").write_text("\n".join(lines))
        return ""

    return pip


def test_an_overlay_takes_what_its_release_asks_for(monkeypatch, tmp_path):
    calls = []
    requires = (
        "huggingface-hub<2.0,>=1.3.0",
        "tokenizers<=0.23.0,>=0.22.0",
        "torch>=2.4; extra == 'torch'",
        "tokenizers>=1; extra == 'dev'",
    )
    monkeypatch.setattr(overlays, "OVERLAYS", tmp_path)
    monkeypatch.setattr(overlays, "pip", fake_pip(calls, requires))
    folder = overlays.overlay("5.0.0")
    assert calls[0][-1] == "transformers==5.0.0"
    assert set(calls[1][-2:]) == {"huggingface-hub<2.0,>=1.3.0", "tokenizers<=0.23.0,>=0.22.0"}
    assert all("--no-deps" in call for call in calls)
    assert overlays.versions(folder) == {"transformers": "9.9", "huggingface-hub": "9.9", "tokenizers": "9.9"}
    assert [path.name for path in tmp_path.iterdir()] == ["5.0.0"]
    overlays.overlay("5.0.0")
    assert len(calls) == 2  # it was there


def test_names_of_releases(monkeypatch, capsys):
    report = {"install": [{"metadata": {"version": "5.99.0"}}]}
    monkeypatch.setattr(overlays, "pip", lambda *arguments: json.dumps(report))
    assert overlays.named([]) == overlays.RELEASES
    assert overlays.named(["oldest", "5.7.0", "latest", "5.7.0"]) == [overlays.RELEASES[0], "5.7.0", "5.99.0"]
    assert "latest: 5.99.0 on the package index" in capsys.readouterr().out

    def no_index(*arguments):
        raise RuntimeError

    monkeypatch.setattr(overlays, "pip", no_index)
    assert overlays.named(["latest"]) == overlays.named(["newest"]) == [overlays.RELEASES[-1]]
    assert "no package index" in capsys.readouterr().out


def test_the_list_is_one_release_per_minor_in_order():
    numbers = [tuple(map(int, release.split("."))) for release in overlays.RELEASES]
    assert numbers == sorted(numbers)
    first, last = numbers[0], numbers[-1]
    assert [number[:2] for number in numbers] == [(5, minor) for minor in range(first[1], last[1] + 1)]
