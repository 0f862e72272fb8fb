"""Pairs per second: photos against sentences, as the original scores them and with `modeling_mengzi_oscar.matching`.

    python benchmarks/match.py                                  # bert-base size, random weights
    python benchmarks/match.py --model checkpoints/mengzi-oscar-mini/match --texts 500
    python benchmarks/match.py --shortlist outputs/match_scores --data_dir data/flickr8k-cn --features stores/mini

The naive path is the original's: one pair a row, padded to 70 text and 70 region slots, float32, eager. The inputs are
drawn: sentences of 8 to 20 characters, 10 to 20 tag words of two characters, 20 to 50 regions each; the mini has no
tags and 49 regions. --shortlist takes scores that train/retrieval.py --do_predict wrote for the test split, all pairs,
and says what is left of their recall when a cheap first stage chooses the pairs: the mini's captions, compared with the
sentences by TF-IDF of characters and pairs of characters.
"""

import json
from pathlib import Path

import numpy as np
import torch
from measure import benchmark_parser, copy_in, count_flops, in_turn, measure_machine, prepare, report, table
from transformers import BertTokenizer

from modeling_mengzi_oscar import MengziOscarConfig, MengziOscarForImageTextRetrieval, MengziOscarProcessor
from modeling_mengzi_oscar.matching import Matcher
from modeling_mengzi_oscar.retrieval import shortlist

MINI = Path(__file__).resolve().parents[1] / "checkpoints" / "mengzi-oscar-mini"
ORIGINAL = 7.7  # pairs/s of the original, bert-base size, 70 + 70 slots, 2 threads of a quiet CPU of this class
SLOTS = 70


def main(arguments=None):
    parser = benchmark_parser(__doc__, runs=3, int8=True)
    parser.add_argument("--model", help="a match head; default: bert-base size, random weights")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--texts", type=int, default=100, help="per image")
    parser.add_argument("--naive_texts", type=int, default=16, help="of them for the naive path, which is slow")
    parser.add_argument("--regions_ignore_text", action="store_true", help="a model whose regions do not read the text")
    parser.add_argument("--shortlist", metavar="FOLDER", help="output of train/retrieval.py --do_predict, all pairs")
    parser.add_argument("--data_dir", help="shortlist: Flickr8k-CN")
    parser.add_argument("--features", help="shortlist: the mini's region features")
    options = parser.parse_args(arguments)
    prepare(options)
    if options.shortlist:
        return keep_and_save(options)

    # 1. Models and inputs
    model, processor, tags = load(options)
    images, texts = draw(options, model.config, processor, tags)
    few = texts[: options.naive_texts]
    fast = {"ours, float32": Matcher(model, processor)}
    if options.dtype != "float32":
        fast[f"ours, {options.dtype}"] = Matcher(copy_in(options.dtype, model), processor)

    # 2. The same scores
    expected = naive(model, processor, images[:1], few)
    found = fast["ours, float32"].probabilities(fast["ours, float32"].scores(images[:1], few))[0]
    difference = float(np.abs(found - expected.numpy()).max())

    # 3. Time
    variants = {"naive: 70 + 70 slots, a pair a row": lambda: naive(model, processor, images[:1], few)}
    variants |= {name: lambda matcher=matcher: matcher.scores(images, texts) for name, matcher in fast.items()}
    measured = in_turn(variants, options.runs, options.device)
    pairs = {name: len(few) if "naive" in name else len(images) * len(texts) for name in variants}
    rates = {name: pairs[name] / result.seconds for name, result in measured.items()}
    base = rates["naive: 70 + 70 slots, a pair a row"]

    # 4. Floor
    counted = options.dtype if options.dtype != "int8" else "float32"  # 8-bit products: the same number, uncounted
    machine = measure_machine(options.device, counted)
    flops = {name: count_flops(function) / pairs[name] for name, function in variants.items() if "int8" not in name}
    flops = {name: flops.get(name, flops["ours, float32"]) for name in variants}
    rows = [
        [name, rates[name], rates[name] / base, flops[name] / 1e9, flops[name] * rates[name] / machine.matrix_rate]
        for name in variants
    ]
    text = table(["", "pairs/s", "times naive", "GFLOP per pair", "of the matrix rate"], rows)
    text += f"\n\n{len(images)} photos x {len(texts)} sentences; largest difference of a probability {difference:.1e}; "
    text += f"{machine}; the original was measured at {ORIGINAL} pairs/s"
    report("match", options, text, {"pairs_per_second": rates, "difference": difference})


def load(options):
    """Model, processor, and whether it reads tags."""
    if options.model:
        model = MengziOscarForImageTextRetrieval.from_pretrained(options.model, dtype="float32")
        processor = MengziOscarProcessor.from_pretrained(options.model)
        return model.to(options.device).eval(), processor, processor.max_tags != 0
    config = MengziOscarConfig(use_img_layernorm=True, regions_read_text=not options.regions_ignore_text)
    model = MengziOscarForImageTextRetrieval(config).to(options.device).eval()
    tokenizer = BertTokenizer.from_pretrained(MINI)
    return model, MengziOscarProcessor(tokenizer, layout="pair", max_length=SLOTS, max_regions=SLOTS), True


def draw(options, config, processor, tags):
    generator = np.random.default_rng(0)
    characters = [token for token in processor.tokenizer.get_vocab() if len(token) == 1 and token >= "\u4e00"]

    def words(number, length):
        return ["".join(generator.choice(characters, length)) for _ in range(number)]

    images = []
    for _ in range(options.images):
        number = generator.integers(20, 51) if tags else 49
        features = generator.standard_normal((number, config.img_feature_dim), dtype=np.float32)
        images.append({"region_features": features, "tags": words(generator.integers(10, 21), 2) if tags else ()})
    return images, ["".join(words(1, length)) for length in generator.integers(8, 21, options.texts)]


def naive(model, processor, images, texts):
    """As the original: every pair a row of full length, eager attention, batches of 16; (images, texts)."""
    attention, model.config._attn_implementation = model.config._attn_implementation, "eager"
    rows = [(text, image) for image in images for text in texts]
    scores = []
    for start in range(0, len(rows), 16):
        batch = rows[start : start + 16]
        inputs = processor(
            text=[text for text, _ in batch],
            tags=[" ".join(image["tags"]) for _, image in batch],
            regions=[image["region_features"] for _, image in batch],
            layout="pair",
        )
        padded = {}
        for name, tensor in inputs.items():
            full = torch.zeros((len(batch), SLOTS, *tensor.shape[2:]), dtype=tensor.dtype)
            full[:, : tensor.shape[1]] = tensor
            padded[name] = full
        scores.append(model.score(padded, batch_size=16))
    model.config._attn_implementation = attention
    return torch.cat(scores).view(len(images), len(texts))


def keep_and_save(options):
    """Recall of all pairs and of those that the first stage chooses."""
    from datasets import Image
    from sklearn.feature_extraction.text import TfidfVectorizer

    from datasets_scripts.flickr8k_cn import Flickr8kCN
    from metrics.retrieval_recall.recall import retrieval_recall
    from modeling_mengzi_oscar import MengziOscarForImageCaptioning, RegionFeatureStore

    builder = Flickr8kCN(data_dir=options.data_dir)
    builder.download_and_prepare()
    rows = builder.as_dataset(split="test").cast_column("image", Image(decode=False))
    store, texts = RegionFeatureStore.open(options.features), [text for row in rows["captions"] for text in row]
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows["captions"]])
    captioner = MengziOscarForImageCaptioning.from_pretrained(MINI, dtype="float32").eval()
    processor, captions = MengziOscarProcessor.from_pretrained(MINI), []
    for start in range(0, len(rows), 50):
        regions = [store[image_id] for image_id in rows["image_id"][start : start + 50]]
        captions += processor.batch_decode(captioner.generate(**processor(regions=regions), num_beams=5))
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 2)).fit(texts)
    first = (vectors.transform(captions) @ vectors.transform(texts).T).toarray()
    scores = np.load(Path(options.shortlist) / "scores.npy").astype(np.float32)

    results = {"first stage alone": retrieval_recall(first, owners), "all pairs": retrieval_recall(scores, owners)}
    pairs = {"first stage alone": 0, "all pairs": scores.size}
    for top in (20, 50, 100, 200):
        kept = np.full(scores.shape, -np.inf, dtype=np.float32)
        for image, chosen in enumerate(shortlist(first, top)):
            kept[image, chosen] = scores[image, chosen]
        name = f"best {top} of each"
        results[name], pairs[name] = retrieval_recall(kept, owners), int(np.isfinite(kept).sum())
    names = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    header = ["", "pairs scored", "of all", *(f"{way} R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))]
    lines = [
        [name, pairs[name], f"{pairs[name] / scores.size:.1%}", *(f"{100 * result[key]:.1f}" for key in names)]
        for name, result in results.items()
    ]
    text = table(header, lines)
    report("match", options, text, json.loads(json.dumps({"pairs": pairs, "recall": results})))


if __name__ == "__main__":
    main()
