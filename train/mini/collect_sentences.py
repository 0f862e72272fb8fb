"""Sentences without photos in one file, `<source>#<n><TAB><sentence>` a line, as --sentences of caption.py reads it.

    python train/mini/collect_sentences.py --flickr8k_cn data/flickr8k-cn --coco_cn data/coco-cn_ext.icap2020.txt \\
        --coco_cn_test data/sentences/coco_cn_test.jsonl --xflickrco data/sentences/xflickrco_zh_test.jsonl \\
        --machine data/sentences/coco_machine_10000.txt --output data/sentences.txt

Of machine translations those stay that read like what people write (fluent_sentences.py). Of xFlickr&CO those
go whose photos are validation or test photos of Flickr8k, where their captions are scored. Each sentence comes once.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for common
from common.tag_sentences import read_sentences
from fluent_sentences import CharacterModel, is_fluent

from datasets_scripts.prepare import builder_class
from modeling_mengzi_oscar.files import write_whole
from modeling_mengzi_oscar.labels.people import names_people

SHORTEST = 5  # characters
FLUENT = -2.9  # mean log-probability of a character: the better half, there are people's for the rest


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k_cn", required=True, help="its files: the people to write like, the photos to avoid")
    parser.add_argument(
        "--coco_cn", required=True, help="COCO-CN's extension, <photo>#<number><TAB><sentence> per line"
    )
    parser.add_argument("--coco_cn_test", required=True, help="JSON Lines with `caption`")
    parser.add_argument("--xflickrco", required=True, help="JSON Lines with `id` and `sentences`")
    parser.add_argument("--machine", required=True, help="machine translations, one per line")
    parser.add_argument("--output", required=True, type=Path, help="file to write")
    options = parser.parse_args(arguments)

    # 1. Read what people wrote
    builder = builder_class("flickr8k_cn")(data_dir=options.flickr8k_cn, config_name=None)
    builder.download_and_prepare()
    photos = builder.as_dataset()
    scored = {i.split("_")[0] for split in ("validation", "test") for i in photos[split]["image_id"]}
    sources = {
        "coco_cn": read_sentences(options.coco_cn),
        "coco_cn_test": [row["caption"] for row in json_lines(options.coco_cn_test)],
        "xflickrco": [s for row in json_lines(options.xflickrco) if row["id"] not in scored for s in row["sentences"]],
    }

    # 2. Keep the machine's that read like it
    people = [text.rstrip("。") for captions in photos["train"]["captions"] for text in captions]
    model = CharacterModel(people + [text.strip().rstrip("。") for texts in sources.values() for text in texts])
    machine = [line.strip() for line in Path(options.machine).read_text(encoding="utf-8").splitlines()]
    fluent = [text for text in machine if is_fluent(text.rstrip("。. "), model)]
    sources["coco_machine"] = [text for text in fluent if model.fluency(text.rstrip("。. "))[0] > FLUENT]

    # 3. Save
    seen, lines = set(), []
    for source, texts in sources.items():
        for text in texts:
            text = text.strip().rstrip("。. ")
            if len(text) >= SHORTEST and text not in seen:
                seen.add(text)
                lines.append(f"{source}#{len(lines)}\t{text}。\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.output, "".join(lines).encode())
    counts = ", ".join(f"{source} {sum(line.startswith(f'{source}#') for line in lines):,}" for source in sources)
    print(f"{options.output}: {len(lines):,} sentences ({counts}), {sum(map(names_people, seen)):,} of them of people")


def json_lines(path):
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


if __name__ == "__main__":
    main()
