"""Self-critical training: sampled captions that score above the baseline become likelier (Rennie et al. 2017).

The reward is CIDEr-D against the photo's sentences, document frequencies of the training split, captions ended by an
<eos> of their own, as in Oscar. Oscar samples in training mode and keeps the probabilities of that pass; here samples
are drawn in evaluation mode and read back in one packed pass with dropout, regions once per photo.
"""

import torch

from metrics.caption_zh.scores import CiderDReward
from metrics.caption_zh.segmentation import words_of

from .collators import CONTEXT, DenseCaptionCollator
from .trainer import OscarTrainer


def reward_words(caption, segment) -> list[str]:
    """Words of a caption without punctuation, and the end as a word, so that stopping in time is worth something."""
    return [*words_of(caption, segment, "drop"), "<eos>"]


def advantages(sample_rewards, greedy_rewards=None) -> torch.FloatTensor:
    """(B, n) rewards minus the baseline: the greedy captions (B,), or else the mean of the photo's other samples."""
    if greedy_rewards is not None:
        return sample_rewards - greedy_rewards[:, None]
    others = sample_rewards.shape[1] - 1
    return sample_rewards - (sample_rewards.sum(dim=1, keepdim=True) - sample_rewards) / others


class SelfCriticalTrainer(OscarTrainer):
    """
    Args:
        processor: of the captioner. references: per training photo its sentences, for the reward.
        segment: words of the reward: "char" or "jieba". The samples and the baseline come from `options`.
    """

    def __init__(self, *args, processor, references, segment="char", **kwargs):
        super().__init__(*args, **kwargs)
        self.processor, self.segment = processor, segment
        self.reward = CiderDReward([[reward_words(caption, segment) for caption in row] for row in references])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        photos = inputs.pop("index").tolist()
        context = {name: inputs[name] for name in CONTEXT if name in inputs}
        inputs = {name: tensor for name, tensor in inputs.items() if not name.startswith("tag_")}
        if not model.training:  # validation: the loss of people's sentences
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        captions = self.generate(context, do_sample=True, num_return_sequences=self.options.sc_train_sample_n)
        rewards = self.rewards(captions, photos)
        greedy_rewards = None
        if self.options.sc_baseline_type == "greedy":
            greedy_rewards = self.rewards(self.generate(context), photos)[:, 0]
        advantage = advantages(rewards, greedy_rewards)  # (B, n)

        packed = self.data_collator.pack_samples(captions, context)
        packed = {name: tensor.to(model.device) for name, tensor in packed.items()}
        labels = packed["labels"]
        outputs = model(
            **packed,
            region_features=context["region_features"],
            region_attention_mask=context["region_attention_mask"],
        )
        log_probs = outputs.logits.float().log_softmax(dim=-1)
        log_probs = log_probs.gather(1, labels[labels != -100][:, None]).squeeze(1)
        lengths = [len(ids) - 1 for samples in captions for ids in samples]  # a label for each token but [CLS]
        means = torch.stack([tokens.mean() for tokens in log_probs.split(lengths)])
        loss = -(means * advantage.flatten().to(means.device)).mean()
        if num_items_in_batch is not None:  # a mean over the photos of the whole step, as OscarTrainer's
            loss = loss * len(photos) / num_items_in_batch[0] * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def generate(self, context, **settings):
        """Per photo its captions as token ids, [CLS] first, [SEP] last; greedy unless told otherwise."""
        self.model.eval()
        copies = settings.get("num_return_sequences", 1)
        settings = {"num_beams": 1, "max_length": self.options.max_gen_length} | settings
        ids = self.model.generate(**context, **settings).tolist()
        self.model.train()
        end = self.processor.tokenizer.sep_token_id
        ids = [caption[: caption.index(end) + 1] if end in caption else caption for caption in ids]
        return [ids[first : first + copies] for first in range(0, len(ids), copies)]  # those of a photo are neighbours

    def rewards(self, captions, photos) -> torch.FloatTensor:
        """CIDEr-D (B, n) of token ids against the sentences of the photos with these numbers."""
        return torch.tensor(
            [
                [self.reward(reward_words(text, self.segment), photo) for text in self.processor.batch_decode(row)]
                for row, photo in zip(captions, photos, strict=True)
            ]
        )


class SelfCriticalCollator(DenseCaptionCollator):
    """Photos with what captions are sampled from, their numbers, and people's sentences for the validation loss."""

    def __call__(self, items):
        return (
            super().__call__(items) | self.context(items) | {"index": torch.tensor([item["index"] for item in items])}
        )

    def pack_samples(self, captions, context):
        """Sampled captions over the regions and tags they were sampled from, ready for the captioner."""
        items = [{} for _ in captions]
        if "tag_input_ids" in context:
            tags = zip(context["tag_input_ids"], context["tag_attention_mask"].bool(), strict=True)
            items = [{"tags": ids[valid].tolist()} for ids, valid in tags]
        return self.pack(captions, items, context["region_attention_mask"].cpu())
