"""Configuration of Mengzi-Oscar: BERT's fields, the fields of Oscar's released config.json, and four of our own.

The fields keep their original names and their defaults when absent, so an original config.json reads as it is.
"""

import re

from transformers import AutoConfig, PretrainedConfig

from .fields import COMMON, Rule, check_fields, flag, number, one_of, optional, text, whole
from .supported_transformers import OLDEST  # noqa: F401  (importing it checks the installed release)

PINNED = re.compile(r"\w[\w.-]*/\w[\w.-]*@\w[\w.-]*")  # Hub id with revision
SUBFOLDER = re.compile(r"\w[\w.-]*")
FIELDS = COMMON | {
    "vocab_size": whole(1, 10_000_000),
    "hidden_size": whole(1, 65_536),
    "num_hidden_layers": whole(1, 256),
    "num_attention_heads": whole(1, 65_536),
    "intermediate_size": whole(1, 1_000_000),
    "hidden_act": one_of("gelu", "relu", "silu", "swish", "tanh"),
    "hidden_dropout_prob": number(0, 1),
    "attention_probs_dropout_prob": number(0, 1),
    "max_position_embeddings": whole(1, 1_000_000),
    "type_vocab_size": whole(1, 1_000),
    "initializer_range": number(0, 100),
    "layer_norm_eps": number(0, 1),
    "pad_token_id": optional(whole(0, 10_000_000)),
    "bos_token_id": optional(whole(0, 10_000_000)),
    "eos_token_id": optional(whole(0, 10_000_000)),
    "mask_token_id": whole(0, 10_000_000),
    "tie_word_embeddings": flag,
    "img_feature_dim": whole(1, 1_000_000),
    "img_feature_type": optional(text),
    "use_img_layernorm": optional(flag),
    "img_layer_norm_eps": number(0, 1),
    "num_contrast_classes": whole(1, 1_000),
    "loss_type": optional(text),
    "classifier": one_of("linear", "mlp"),
    "cls_hidden_scale": whole(1, 100),
    "num_choice": whole(1, 100),
    "tie_weights": optional(flag),
    "freeze_embedding": optional(flag),
    "label_smoothing": number(0, 1),
    "drop_worst_ratio": number(0, 1),
    "drop_worst_after": whole(0, 10**12),
    "tag_position_offset": whole(0, 1_000_000),
    "region_model": optional(
        Rule(
            "the name of a subfolder or org/name@revision of the Hub: a checkpoint is its own files",
            lambda value: isinstance(value, str) and bool(SUBFOLDER.fullmatch(value) or PINNED.fullmatch(value)),
        )
    ),
    "regions_read_text": flag,
}


class MengziOscarConfig(PretrainedConfig):
    """Sizes and training options of a Mengzi-Oscar checkpoint.

    Args:
        vocab_size ... tie_word_embeddings: as in `BertConfig`.
        img_feature_dim: length of a region feature row: appearance + 6 numbers of box geometry (VinVL: 2,054).
        img_feature_type: free text of the original; every value means "float rows through one Linear" here.
        use_img_layernorm: LayerNorm after that Linear. Off when absent: it must survive from checkpoint to checkpoint.
        img_layer_norm_eps: epsilon of that LayerNorm, separate from BERT's.
        num_contrast_classes: image-text contrast of pre-training, 2 or 3 ways.
        loss_type: "bce", "kl" or anything else for cross entropy, in the classifying heads.
        classifier: "linear" or "mlp" (hidden size x `cls_hidden_scale`) in the classifying heads.
        num_choice: images per question in visual reasoning.
        tie_weights: captioning: the decoder is the word embedding (the pre-training head always ties).
        freeze_embedding: captioning: the word embedding is not trained.
        label_smoothing, drop_worst_ratio, drop_worst_after: captioning loss, see `caption_loss`.
        mask_token_id: the id that asks for a word.
        tag_position_offset: position of the first tag in captioning (the `max_seq_a_length` of the training).
        region_model: Hub id with revision or subfolder of the region model this checkpoint was trained with.
        regions_read_text: retrieval and question answering: regions attend to the text, as published. False: they
            attend to one another only, so that their states serve every text of an image (matching.py).

    Raises:
        ValueError: a value that `FIELDS` does not allow, or two that contradict each other, by name.
    """

    model_type = "mengzi_oscar"

    def __init__(
        self,
        vocab_size=21128,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        max_position_embeddings=512,
        type_vocab_size=2,
        initializer_range=0.02,
        layer_norm_eps=1e-12,
        pad_token_id=0,
        bos_token_id=101,
        eos_token_id=102,
        tie_word_embeddings=True,
        img_feature_dim=2054,
        img_feature_type="frcnn",
        use_img_layernorm=False,
        img_layer_norm_eps=1e-12,
        num_contrast_classes=2,
        loss_type="sfmx",
        classifier="linear",
        cls_hidden_scale=2,
        num_choice=2,
        tie_weights=False,
        freeze_embedding=False,
        label_smoothing=0.0,
        drop_worst_ratio=0.0,
        drop_worst_after=0,
        mask_token_id=103,
        tag_position_offset=40,
        region_model=None,
        regions_read_text=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.img_feature_dim = img_feature_dim
        self.img_feature_type = img_feature_type
        self.use_img_layernorm = use_img_layernorm
        self.img_layer_norm_eps = img_layer_norm_eps
        self.num_contrast_classes = num_contrast_classes
        self.loss_type = loss_type
        self.classifier = classifier
        self.cls_hidden_scale = cls_hidden_scale
        self.num_choice = num_choice
        self.tie_weights = tie_weights
        self.freeze_embedding = freeze_embedding
        self.label_smoothing = label_smoothing
        self.drop_worst_ratio = drop_worst_ratio
        self.drop_worst_after = drop_worst_after
        self.mask_token_id = mask_token_id
        self.tag_position_offset = tag_position_offset
        self.region_model = region_model
        self.regions_read_text = regions_read_text
        tokens = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        check_fields(vars(self) | tokens | {"tie_word_embeddings": tie_word_embeddings} | kwargs, FIELDS)
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}"
            )
        if pad_token_id is not None and pad_token_id >= vocab_size:
            raise ValueError(f"pad_token_id is {pad_token_id}; the vocabulary has {vocab_size} tokens")
        names = kwargs.get("id2label")
        if names and {*map(int, names)} != {*range(len(names))}:
            raise ValueError(f"id2label does not name the answers 0 to {len(names) - 1}, each once")
        if names and kwargs.get("num_labels") not in (None, len(names)):
            raise ValueError(f"num_labels is {kwargs['num_labels']}, id2label names {len(names)}")
        if kwargs.get("attn_implementation") != "eager":
            # Original files may say it. transformers saves no config that says it beside sdpa, the default.
            kwargs.pop("output_attentions", None)
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )


if not __name__.startswith("transformers_modules"):  # as code of a Hub repo it must not stand in for other repos
    AutoConfig.register(MengziOscarConfig.model_type, MengziOscarConfig, exist_ok=True)
