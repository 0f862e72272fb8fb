"""How well a pre-trained model finds masked tokens and judges pairs, counted by all processes together."""

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from modeling_mengzi_oscar.processing_mengzi_oscar import SPACE_BETWEEN_CJK

from .trainer import in_order, share_of


@torch.inference_mode()
def evaluate_pretraining(model, rows, collator, training):
    """How many masked tokens are found and how many pairs judged right, of all processes; and ten rows to look at."""
    model.eval()
    indices = share_of(len(rows))
    loader = DataLoader(Subset(rows, indices), batch_size=training.eval_batch_size, collate_fn=collator)
    counts, lines = torch.zeros(4, device=model.device), []  # tokens found, tokens, pairs right, pairs
    for batch in tqdm(loader, desc="masked tokens", leave=False, disable=not PartialState().is_main_process):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels, contrast = batch.pop("labels"), batch.pop("next_sentence_label")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.bf16):
            output = model.bert(**batch)
            asked = labels != -100
            found = model.cls.predictions(output.last_hidden_state[:, : labels.shape[1]][asked]).argmax(dim=-1)
            judged = model.cls.seq_relationship(output.pooler_output).argmax(dim=-1)
        right = found == labels[asked]
        counts += torch.stack(
            [right.sum(), asked.sum(), (judged == contrast).sum(), torch.tensor(len(labels), device=model.device)]
        )
        if not lines:
            filled = batch["input_ids"].masked_scatter(asked, found)
            lines = [
                [text_of(ids[row][seen], collator.processor.tokenizer) for ids in (filled, batch["input_ids"])]
                for row, seen in enumerate(batch["attention_mask"].bool())
            ]
    found, asked, right, pairs = reduce(counts, "sum").tolist()
    samples = [
        (index, {"image_id": rows.rows[index]["image_id"], "lines": line})
        for index, line in zip(indices, lines, strict=False)
    ]
    return {"masked_accuracy": found / max(1, asked), "contrast_accuracy": right / pairs}, in_order(samples)


def text_of(ids, tokenizer) -> str:
    """Text and tags without [CLS] and the last [SEP], no spaces between Chinese characters."""
    return SPACE_BETWEEN_CJK.sub("", tokenizer.decode(ids[1:-1]))
