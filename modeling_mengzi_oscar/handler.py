"""Serves this repo on Hugging Face Inference Endpoints, whose toolkit imports handler.py and calls `EndpointHandler`.

A request is {"inputs": a photo in base64, or a list of them, "parameters": {}}: `texts`, `question`, or of a caption.
"""

import json
from pathlib import Path

from transformers import pipeline


class EndpointHandler:
    def __init__(self, path=""):
        task = next(iter(json.loads(Path(path, "config.json").read_text("utf-8"))["custom_pipelines"]))
        self.pipeline = pipeline(task, model=path, trust_remote_code=True)  # the code that lies beside this file

    def __call__(self, data):
        return self.pipeline.answer_request(data)
