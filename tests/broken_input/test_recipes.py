"""Recipes go through the parser of the flags: one line that names file, row and key, status 2."""

import pytest
from caption import CaptionArguments
from common.arguments import parse_arguments
from common.tag_sentences import TagSentenceArguments
from transformers import TrainingArguments

NEEDED = ["--model_name_or_path", "m", "--dataset", "d", "--output_dir", "o", "--use_cpu"]
KINDS = (CaptionArguments, TagSentenceArguments, TrainingArguments)


def read(recipe, *given):
    return parse_arguments(*KINDS, description="", arguments=["--recipe", str(recipe), *NEEDED, *given])


REFUSED = {
    "objective: scts": "row 1: argument --objective: invalid choice: 'scts' (choose from",
    "seed: 1\nlearning_rate: abc": "row 2: argument --learning_rate/--learning-rate: invalid float value: 'abc'",
    "learning_rate: [1, 2]": "row 1: --learning_rate takes one value",
    "learning_rate: {a: 1}": "--learning_rate/--learning-rate: invalid float value",
    "learning_rate: yes": "invalid float value: 'yes'",
    "learning_rate:": "row 1: learning_rate has no value",
    "learning_rate: nan": "row 1: learning_rate is nan",
    "bf16: maybe": "row 1: argument --bf16",
    "seed: 2024-01-01": "row 1: argument --seed: invalid int value: '2024-01-01'",
    "seed: -1": "row 1: seed is -1; it takes 0 to 4,294,967,295",
    "per_device_train_batch_size: 0": "row 1: per_device_train_batch_size is 0; it takes 1 or more",
    "ema_decay: 2": "row 1: ema_decay is 2.0; it takes 0 to 1",
    "max_steps: 1e3": "row 1: argument --max_steps/--max-steps: invalid int value",
    "seed: 1\nseed: 2": "row 2: seed stands there twice, first in row 1",
    "learning_rate: 1\nlearning-rate: 2": "row 2: learning-rate stands there twice",
    "learning_rat: 1": "row 1: 'learning_rat' is not a flag of this script; did you mean learning_rate?",
    "recipe: other.yaml": "row 1: 'recipe' is not a flag",
    "features: [[a]]": "row 1: features: a list of plain values is expected",
    "features: []": "row 1: argument --features: expected at least one argument",
    "? [a]\n: b": "row 1: a name of a flag is expected",
    "seed: !!python/object/apply:os.system [ls]": "row 1: argument --seed: invalid int value",
    "eval_strategy: sometimes": "row 1: argument --eval_strategy/--eval-strategy: invalid choice",
    "warmup_steps: -5": "row 1",
    "early_stopping_patience: 3": "--eval_strategy steps or epoch is missing",
    "tune_region_model: '(['": "--tune_region_model ([: no regular expression (unterminated",
    "sc_baseline_type: sample\nsc_train_sample_n: 1": "--sc_train_sample_n 2 or more",
    "": "the recipe is empty",
    "# only a comment": "the recipe is empty",
    "- seed": "not a recipe",
    "seed": "not a recipe",
    "a: [": "not YAML",
    "a: b: c": "not YAML",
    "\tseed: 1": "not YAML",
    "seed: 1\n---\nseed: 2": "not YAML",
    "[" * 3000: "not YAML",
}


def refusal(capsys, recipe) -> str:
    with pytest.raises(SystemExit) as refused:
        read(recipe)
    assert refused.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_what_is_no_recipe_is_one_line(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    for text, message in REFUSED.items():
        recipe.write_text(text, encoding="utf-8")
        line = refusal(capsys, recipe)
        assert message in line, line
        assert str(recipe) in line or line.split(": ")[1].startswith("--")
    recipe.write_bytes("style: 短".encode("gbk"))
    assert "broken UTF-8" in refusal(capsys, recipe)
    recipe.write_bytes(b"style: \x00")
    assert "not YAML" in refusal(capsys, recipe)
    assert "is a folder" in refusal(capsys, tmp_path)
    assert "no such recipe" in refusal(capsys, tmp_path / "none.yaml")


def test_values_are_taken_as_they_are_written(tmp_path):
    """One folder is one path; `no` is a word where words are asked for; JSON where a flag takes it."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "features: /some/folder\neval_strategy: no\nbf16: no\nadd_od_labels: yes\nlearning-rate: 6.0e-4\nseed: '7'\n"
        "style:\nreport_to: none\nlr_scheduler_kwargs: {num_cycles: 2}\ndrop_out: ~\n",
        encoding="utf-8-sig",
    )
    options, _, training = read(recipe, "--seed", "8")
    assert options.features == ["/some/folder"]
    assert (options.add_od_labels, options.style, options.drop_out) == (True, None, None)
    assert (training.eval_strategy, training.bf16, training.learning_rate, training.seed) == ("no", False, 6e-4, 8)
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    recipe.write_text("features: [a, b]\n", encoding="utf-8")
    assert read(recipe)[0].features == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--objectiv", "x", "--learning-rat=x"], "argument --objective: invalid choice"),  # argparse completes names
        (["--learning_rats", "1"], "--learning_rats is not a flag of this script; did you mean learning_rate?"),
        (["--num_beams", "0"], "--num_beams is 0; it takes 1 or more"),
        (["--early_stopping_patience", "3"], "--eval_strategy steps or epoch is missing"),
        (["--eval_strategy", "steps", "--eval_steps", "x"], "invalid float value"),
    ],
)
def test_flags_are_judged_alike(given, message, capsys):
    with pytest.raises(SystemExit) as refused:
        parse_arguments(*KINDS, description="", arguments=[*NEEDED, *given])
    assert refused.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
