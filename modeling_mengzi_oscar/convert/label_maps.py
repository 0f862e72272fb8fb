"""Answer lists of VQA and GQA, which exist as JSON or only as pickles: read without running what a pickle asks for."""

import json
import pickle
import pickletools
from pathlib import Path

from ..checkpoint_folder import one_line

LARGEST = 5_000_000  # bytes; the longest list of VQA has a few thousand answers
WORDS_AND_NUMBERS = {  # the opcodes of a dict or list of strings and numbers, as Python 2 and 3 write it
    *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST"),
    *("SETITEM", "SETITEMS", "APPEND", "APPENDS", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
}
TO_THE_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
FROM_THE_MEMO = ("MEMOIZE", "GET", "BINGET", "LONG_BINGET")


def read_answers(path) -> list[str]:
    """Answers in the order of their ids, of a map {answer: id} or a list; JSON, or a pickle of plain containers.

    Raises:
        ValueError: one line: the file is missing, damaged or refused, or its ids do not go from 0 up, each once.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path}: refused as a list of answers: more than {LARGEST:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if path.suffix == ".pkl":
            check_pickle(content)
            data = pickle.loads(content)
        else:
            data = json.loads(content)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused as a list of answers: {error}") from None
    except Exception as error:  # what is not a pickle makes the unpickler raise anything at all
        raise ValueError(f"{path}: damaged ({one_line(error)})") from None
    if isinstance(data, dict):
        ids = [number for number in data.values() if type(number) is int]
        if sorted(ids) != list(range(len(data))):
            raise ValueError(f"{path}: the ids of its {len(data)} answers are not 0 to {len(data) - 1}, each once")
        data = sorted(data, key=data.get)
    plain = isinstance(data, list) and all(type(answer) in (str, int) for answer in data)
    if not plain or not data or len(set(map(str, data))) != len(data):
        raise ValueError(f"{path}: neither a map from answers to ids nor a list of different answers")
    return list(map(str, data))


def check_pickle(content: bytes) -> None:
    """Looks at a pickle opcode by opcode, before anything is built from it.

    It may build one container of strings and numbers: so no function is called, nothing is nested, nothing grows by
    being repeated. Lengths beyond the file end in `pickletools`; a memo is as long as its greatest index.

    Raises:
        pickle.UnpicklingError
    """
    containers = 0
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name in ("GLOBAL", "INST"):
                raise pickle.UnpicklingError(f"it calls {argument.replace(' ', '.')}")
            if opcode.name == "STACK_GLOBAL":
                raise pickle.UnpicklingError("it calls a function by name")
            if opcode.name not in (*WORDS_AND_NUMBERS, *TO_THE_MEMO, *FROM_THE_MEMO):
                raise pickle.UnpicklingError(f"it holds more than strings and numbers ({opcode.name})")
            if opcode.name in TO_THE_MEMO and argument > number:
                raise pickle.UnpicklingError(f"it asks for memory that it does not use ({opcode.name} {argument})")
            containers += opcode.name in ("EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST")
            if containers > 1:
                raise pickle.UnpicklingError("it holds containers in containers")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise pickle.UnpicklingError(one_line(error)) from None
