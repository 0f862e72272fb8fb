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
    counts, lines = torch.zeros(4, device=model.device), []  # tokens right, tokens, pairs right, pairs
    for batch in tqdm(loader, desc="masked tokens", leave=False, disable=not PartialState().is_main_process):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels, contrast = batch.pop("labels"), batch.pop("next_sentence_label")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.bf16):
            output = model.bert(**batch)
            masked = labels != -100
            predicted = model.cls.predictions(output.last_hidden_state[:, : labels.shape[1]][masked]).argmax(dim=-1)
            judged = model.cls.seq_relationship(output.pooler_output).argmax(dim=-1)
        tokens_right, pairs = predicted == labels[masked], torch.tensor(len(labels), device=model.device)
        counts += torch.stack([tokens_right.sum(), masked.sum(), (judged == contrast).sum(), pairs])
        if not lines:
            filled = batch["input_ids"].masked_scatter(masked, predicted)
            lines = [
                [text_of(ids[row][valid], collator.processor.tokenizer) for ids in (filled, batch["input_ids"])]
                for row, valid in enumerate(batch["attention_mask"].bool())
            ]
    tokens_right, tokens, pairs_right, pairs = reduce(counts, "sum").tolist()
    samples = [
        (index, {"image_id": rows.rows[index]["image_id"], "lines": line})
        for index, line in zip(indices, lines, strict=False)
    ]
    scores = {"masked_accuracy": tokens_right / max(1, tokens), "contrast_accuracy": pairs_right / pairs}
    return scores, in_order(samples)


def text_of(ids, tokenizer) -> str:
    """Text and tags without [CLS] and the last [SEP], no spaces between Chinese characters."""
    return SPACE_BETWEEN_CJK.sub("", tokenizer.decode(ids[1:-1]))
