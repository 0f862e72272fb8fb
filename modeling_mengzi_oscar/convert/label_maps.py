"""Answer lists of VQA and GQA, which exist as JSON or only as pickles: read without running what a pickle asks for."""

import json
import pickle
from pathlib import Path


class PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings and numbers, which need no look-up of a class or function; refuses the rest."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it calls {module}.{name}")


def read_answers(path) -> list[str]:
    """Answers in the order of their ids, of a map {answer: id} or a list; JSON, or a pickle of plain containers.

    Raises:
        ValueError: one line: the file is missing, damaged or refused, or its ids do not go from 0 up, each once.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = PlainUnpickler(file).load() if path.suffix == ".pkl" else json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # what is not a pickle makes the unpickler raise anything at all
        reason = f"refused as a list of answers: {error}" if isinstance(error, pickle.UnpicklingError) else "damaged"
        raise ValueError(f"{path}: {reason}") from None
    if isinstance(data, dict):
        by_id = {number: answer for answer, number in data.items()}
        if by_id.keys() != set(range(len(data))):
            raise ValueError(f"{path}: the ids of its {len(data)} answers are not 0 to {len(data) - 1}, each once")
        data = [by_id[number] for number in range(len(data))]
    if not isinstance(data, list) or not data or len(set(map(str, data))) != len(data):
        raise ValueError(f"{path}: neither a map from answers to ids nor a list of different answers")
    return list(map(str, data))
