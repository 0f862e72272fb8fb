"""Chinese captions in lmms-eval: tasks for any of its models, with the scores of `metrics.caption_zh`, and our models.

    python -m evaluation.prepare flickr8k_cn --data-dir flickr8k-cn
    lmms-eval --model mengzi_oscar --model_args pretrained=checkpoints/mengzi-oscar-mini \\
        --include_path evaluation/tasks --tasks flickr8k_cn_caption --output_path outputs

docs/evaluation.md says more.
"""

from pathlib import Path

TASKS = Path(__file__).resolve().parent / "tasks"  # for --include_path


def models():
    """What lmms-eval registers; setup.cfg names it in the entry-point group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("mengzi_oscar", simple_class_path="evaluation.lmms_eval_model.MengziOscar")
