"""Serves this repo on Hugging Face Inference Endpoints, whose toolkit imports handler.py and calls `EndpointHandler`.

A request is {"inputs": a photo in base64, or a list of them, "parameters": {}}: `texts`, `question`, or of a caption.
"""

import json
from base64 import b64decode
from pathlib import Path

from transformers import pipeline

TAKEN = ("style", "num_beams", "max_new_tokens", "num_return_sequences", "do_sample", "temperature", "top_k", "top_p")


class EndpointHandler:
    def __init__(self, path=""):
        task = next(iter(json.loads(Path(path, "config.json").read_text("utf-8"))["custom_pipelines"]))
        self.photos = pipeline(task, model=path, trust_remote_code=True).photos  # the code that lies beside this file

    def __call__(self, data):
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        method = "match" if "texts" in parameters else "ask" if "question" in parameters else "caption"
        if unknown := sorted(parameters.keys() - {*TAKEN, "texts", "question", "top"}):
            raise ValueError(f"parameters: {unknown[0]!r} is none of texts, question, top, {', '.join(TAKEN)}")
        photos = [opened(photo) for photo in inputs] if isinstance(inputs, list) else opened(inputs)
        return getattr(self.photos, method)(photos, **parameters)


def opened(photo):  # a text is base64, never a path: nobody reads the server's files
    return b64decode(photo.rpartition(",")[2] + "==") if isinstance(photo, str) else photo
