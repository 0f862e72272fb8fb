"""Pickles of strangers: answer lists are walked before anything is built from them."""

import pickle
import random
import struct
import time
import tracemalloc

import pytest

from modeling_mengzi_oscar.convert.label_maps import read_answers

ANSWERS = {"是": 0, "不是": 1, "两个": 2}


def doubled(levels=40):
    """Some bytes whose content is 2^40 strings long: each list holds the one before twice."""
    layers = b"".join(b"]q%c(h%ch%ce" % (number + 1, number, number) for number in range(levels))
    return b"\x80\x02]q\x00X\x01\x00\x00\x00aa" + layers + b"."


def tuples(levels=80):
    """Hashing the key of this dict takes 2^80 steps."""
    return b"\x80\x02}X\x01\x00\x00\x00a" + b"2\x86" * levels + b"K\x00s."


HOSTILE = {
    "memo index of 2.5 GB": b"\x80\x02]r\x00\x00\x00\x08.",
    "memo index of tens of GB": b"\x80\x02]r\xff\xff\xff\x7f.",
    "memo index in words": b"]p134217728\n.",
    "length of 4 GB": b"\x80\x02X\xff\xff\xff\xffa.",
    "length of 2^63": b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b"a.",
    "number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    "number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "bytes of 2^63": b"\x80\x05\x96" + struct.pack("<Q", 2**63 - 1) + b".",
    "lists in lists": doubled(),
    "tuples in tuples": tuples(),
    "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dict of itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a call": b"cos\nsystem\n(S'true'\ntR.",
    "a call in 4": pickle.dumps(print, protocol=4),
    "an instance": b"(ios\nsystem\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pabc\n.",
    "a set": pickle.dumps({1, 2}),
    "floats": pickle.dumps([0.5, 1.5]),
    "true and false": pickle.dumps({"a": False, "b": True}),
    "ids that are words": pickle.dumps({"a": "0"}),
    "nothing": b"",
    "no end": pickle.dumps(ANSWERS)[:-1],
    "text": "是\n不是\n".encode(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_at_once(kind, tmp_path):
    path = tmp_path / "answers.pkl"
    path.write_bytes(HOSTILE[kind])
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"answers\.pkl: ") as error:
        read_answers(path)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - start < 2
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("protocol", range(6))
def test_answer_lists_of_every_protocol_are_read(protocol, tmp_path):
    path = tmp_path / "answers.pkl"
    for answers in (ANSWERS, list(ANSWERS)):
        path.write_bytes(pickle.dumps(answers, protocol=protocol))
        assert read_answers(path) == list(ANSWERS)
    many = {f"答案{number}": number for number in range(3_129)}
    path.write_bytes(pickle.dumps(many, protocol=protocol))
    assert read_answers(path) == list(many)


def test_damaged_pickles_end_in_one_line(tmp_path):
    """Any change of a byte or two: a list of strings, or a line that names the file."""
    path, generator = tmp_path / "answers.pkl", random.Random(0)
    refused = 0
    for number in range(300):
        content = bytearray(pickle.dumps(ANSWERS, protocol=number % 6))
        for _ in range(generator.randint(1, 2)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            assert all(isinstance(answer, str) for answer in read_answers(path))
        except ValueError as error:
            refused += str(error).startswith(str(path)) and "\n" not in str(error)
            if not refused:
                raise
    assert refused > 100


NO_ANSWERS = [b"[" * 100_000, b'["a", NaN, {}]', b'{"a": 1e999}', b"3", b'["a", "a"]', b"\xff", b"", b'{"a": true}']


@pytest.mark.parametrize("content", NO_ANSWERS)
def test_json_of_something_else_ends_in_one_line(content, tmp_path):
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"answers\.json: "):
        read_answers(path)
