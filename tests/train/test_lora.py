"""Low-rank adapters by peft: on every head in Python, as the page says it, and by train/caption.py."""

import re
import shutil

import caption as caption_script
import pytest
import torch
from conftest import REPOSITORY, tiny_config
from safetensors.torch import load_file
from test_all_heads import HEADS, build, inputs

from modeling_mengzi_oscar import (
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    MengziOscarModel,
    MengziOscarPipeline,
)
from modeling_mengzi_oscar.hub import add_head, save_checkpoint
from modeling_mengzi_oscar.loading import load_processor

peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")


@pytest.mark.parametrize("head", [head for head in HEADS if head is not MengziOscarModel], ids=lambda c: c.__name__)
def test_adapters_are_trained_saved_loaded_and_merged(head, tmp_path):
    model, batch = build(head), inputs(head, labels=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"]))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(5):
        losses.append(adapted(**batch).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path)
    expected = adapted.eval()(**batch).loss
    again = build(head)
    again.load_state_dict(before)
    merged = peft.PeftModel.from_pretrained(again, str(tmp_path)).merge_and_unload()
    assert type(merged) is head
    assert merged.state_dict().keys() == before.keys()
    torch.testing.assert_close(merged.eval()(**batch).loss, expected)
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith((".query.weight", ".value.weight"))}


def test_the_lines_of_the_page(tmp_path, monkeypatch):
    page = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
    [lines] = re.findall(
        r"^```python\n(.*?)^```", page.split("\n## LoRA\n")[1].split("\n## ")[0], re.DOTALL | re.MULTILINE
    )
    assert len(lines.split("\n\n")[1].splitlines()) <= 6
    (tmp_path / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(lines, names)
    assert isinstance(names["merged"], MengziOscarForImageCaptioning)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 2**19


def test_training_with_adapters_goes_on_and_merges_into_best(tiny_checkpoint, data_dir, tmp_path):
    start, run = shutil.copytree(tiny_checkpoint, tmp_path / "start"), tmp_path / "run"
    head = MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=262))
    save_checkpoint(tmp_path / "head", head, load_processor(start), task="retrieval")
    add_head(start, tmp_path / "head", "match")
    command = [f"--model_name_or_path={start}", "--dataset=flickr8k_cn", f"--data_dir={data_dir}"]
    command += [
        f"--output_dir={run}",
        "--lora_r=2",  # --do_train need not be said
        "--learning_rate=0.02",
        "--lr_scheduler_type=constant",
    ]
    command += ["--save_steps=2", "--eval_strategy=steps", "--metric_for_best_model=loss", "--max_eval_rows=1"]
    command += ["--report_to=none", "--use_cpu=true", "--num_beams=1", "--ema_decay=0.5"]
    for steps in (2, 4):
        caption_script.main([*command, f"--max_steps={steps}"])
    with pytest.raises(SystemExit, match="of another model .* resume with the flags that the training began with"):
        caption_script.main([*command, "--max_steps=6", "--lora_r=4"])
    state = load_file(run / "checkpoint-4" / "model.safetensors")
    adapters = {name for name in state if "lora_" in name}
    assert adapters
    assert load_file(run / "checkpoint-4" / "weight_average.safetensors").keys() == adapters
    before, best = (load_file(folder / "model.safetensors") for folder in (start, run / "best"))
    changed = {name for name in before if not torch.equal(before[name], best[name])}
    assert best.keys() == before.keys()
    assert changed
    assert all(re.fullmatch(r"bert\.encoder\..*\.(query|key|value|dense)\.weight", name) for name in changed)
    pipeline, photo = MengziOscarPipeline.from_pretrained(run / "best"), data_dir / "images" / "photo0.jpg"
    assert pipeline.caption(photo)["captions"]
    assert pipeline.match(photo, ["一面红色的墙"])  # the head of the start, which reads the same regions
