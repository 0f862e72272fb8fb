"""Writes sentences for photos of things, each true of its photo as far as anybody can tell without people.

    python train/mini/write_thing_sentences.py --things data/things --teacher data/teacher/yolox_nano_things.jsonl \\
        --output data/thing_sentences.jsonl

What is known of a photo: the name of the thing with its measure word and what is true of every photo of its class
(tables beside this script), how many there are and what stands beside it where the detector is sure (boxes from 0.5
on), whether there is a person (from 0.75 on; photos between are left out, so that a person is never said to be away who
is there), and colours, sky, grass and background where measuring leaves no doubt (photo_facts.py).

A photo gets `--sentences` short ones and `--detailed` longer ones, each of another form, drawn by the photo's name:
the same in every run. A form that is more than 5 % of all sentences is said. A line of the output is a photo:
{"image", "split", "words", "short": [..], "detailed": [..]}; the test split gets no sentences and is not in it.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from photo_facts import look_at
from things import measure_words, read_things
from tqdm.auto import tqdm

from modeling_mengzi_oscar.files import write_whole
from modeling_mengzi_oscar.labels.coco import object_words

NOBODY, SOMEBODY, SURE, PERHAPS = 0.2, 0.75, 0.5, 0.25  # scores of the detector
HAND = 0.08  # score of a person from which somebody may hold the thing
APART = 0.3  # overlap from which two boxes may be the same thing
FEW, MORE = 2, 4  # forms that fit every thing and are said of a class: with traits or places, and without
TASTE = 2.5  # how much likelier a form is that a class prefers by one standard deviation
MOST = 0.05  # share of all sentences that one form should have at the most
UNDER_THE_SKY = "aircraft building tree statue boat vehicle"  # kinds
STANDS_STILL = "furniture machine instrument tool thing lamp statue"
ON_GRASS = (  # nouns
    "狗 斑点狗 大象 马 斑马 牛 羊 羊驼 袋鼠 犀牛 兔子 鹿 羚羊 狼 狐狸 猪 熊 狮子 老虎 骆驼 火烈鸟 鸸鹋 鹮 鸵鸟 鸡 "
    "公鸡 鹅 天鹅 鸭子 飞机 客机 直升机 汽车 拖拉机 吉普车 摩托车 自行车 割草机 轮椅 椅子 足球 大炮"
)
DEAR = "狗 斑点狗 猫 熊猫 大熊猫 小熊猫 兔子 仓鼠 刺猬 松鼠 考拉 企鹅 羊驼 海狸"
BESIDE = (  # what the detector seldom takes other things for
    "car bicycle motorcycle truck bench cup bottle bowl chair couch bed book mouse keyboard tv boat umbrella"
)
SAME = {  # a class of the detector, and our nouns that it stands for, beside its own word
    "laptop": "笔记本电脑 电脑",
    "stopsign": "路牌 标志牌 停车标志",
    "airplane": "客机",
    "boat": "帆船 渡轮 轮船",
    "car": "轿车 小汽车",
    "clock": "手表",
    "pottedplant": "盆景 盆栽",
    "teddybear": "玩具熊",
    "chair": "木头椅子",
    "dog": "斑点狗",
    "cat": "野猫",
    "vase": "壶 水壶",
}
ANIMALS = {"bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--things", required=True, type=Path, help="folder with images/ and photos.jsonl")
    parser.add_argument("--teacher", required=True, type=Path, help="the detector's boxes, one line per photo")
    parser.add_argument("--output", required=True, type=Path, help="JSON Lines file to write")
    parser.add_argument("--sentences", type=int, default=4, help="short ones per photo (default %(default)s)")
    parser.add_argument("--detailed", type=int, default=2, help="longer ones per photo (default %(default)s)")
    parser.add_argument("--seed", type=int, default=88, help="of what is drawn (default %(default)s)")
    options = parser.parse_args(arguments)

    # 1. Read
    things = [thing for thing in read_things(options.things, options.teacher) if thing.split != "test"]
    measures = measure_words()
    turns = {name: turn for turn, name in enumerate(sorted({thing.name for thing in things}))}

    # 2. Write sentences
    rows, forms, left_out = [], Counter(), Counter()
    for thing in tqdm(things, "photos", leave=False):
        row = {"image": thing.image, "split": thing.split, "words": thing.words}
        if not thing.nouns:
            left_out["without a clear name"] += 1
        elif not thing.shows_statue and NOBODY <= thing.person < SOMEBODY:
            left_out["perhaps with a person"] += 1
        else:
            facts = look_at(options.things / "images" / thing.image, main_box(thing))
            draw = random.Random(f"{options.seed} {thing.image}")
            for style, count in (("short", options.sentences), ("detailed", options.detailed)):
                about = SentencesAbout(thing, turns[thing.name], facts, measures, draw)
                said = draw_sentences(about, style, count, draw)
                row[style] = [f"{text}。" for _, text in said]
                forms.update(f"{style}: {form}" for form, _ in said)
            rows.append(row)

    # 3. Save
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    texts = Counter(text for row in rows for text in row["short"] + row["detailed"])
    print(f"{texts.total():,} sentences, {len(texts):,} different, of {len(forms)} forms, the most frequent:")
    for form, count in forms.most_common(5):
        print(
            f"  {count / texts.total():.1%} {form}{', more than a form should have' * (count > MOST * texts.total())}"
        )
    lost = ", ".join(f"{count:,} {why}" for why, count in left_out.items()) or "none"
    print(f"{options.output}: {len(rows):,} photos; left out: {lost}")


def main_box(thing):
    """The surest box that is no person's, in 0..1: on a photo of one thing most likely that, whatever it is called."""
    boxes = [box for box in thing.boxes if box[0] != "person" and box[1] >= SURE]
    if not boxes:
        return None
    _, _, *corners = max(boxes, key=lambda box: box[1])
    return [min(max(at / side, 0), 1) for at, side in zip(corners, thing.size * 2, strict=True)]


def draw_sentences(about, style, count, draw):
    """(form, text) of so many different forms; those that say more of this photo are drawn more often.

    Every class has forms that it prefers: a captioner writes what is likeliest, and if that were the same for all
    things, it would write one form only.
    """
    forms, said = getattr(about, style)(), {}
    name = about.thing.words[0]
    taste = {form: TASTE ** random.Random(f"{name} {form}").gauss(0, 1) for form in forms}
    while forms and len(said) < count:
        [form] = draw.choices(list(forms), [weight * taste[form] for form, (weight, _) in forms.items()])
        text = forms.pop(form)[1]
        said.setdefault(text, form)
    return [(form, text) for text, form in said.items()]


class SentencesAbout:
    """All sentences that can be said of a photo, by their forms: {form: (weight, text)}."""

    def __init__(self, thing, turn, facts, measures, draw):
        self.thing, self.facts = thing, facts
        self.noun = draw.choice(thing.nouns)
        self.measure, self.kind = measures[self.noun]
        number = number_of(thing)
        if number is not None and self.measure != "-":
            self.number = number if len(number) > 1 else number + self.measure  # 一架; 一双 as it is
        else:
            self.number = number if number and len(number) > 1 else ""
        self.one = self.number.startswith("一")
        several = "黑白相间的" in thing.traits
        self.colour = None if several or thing.shows_statue and facts.colour == "红色" else facts.colour
        self.trait = draw.choice(thing.traits) if thing.traits else ""
        self.place = draw.choice(thing.places) if thing.places else ""
        self.people = "" if thing.shows_statue or thing.person < SOMEBODY else people_in(thing)
        self.in_hand = thing.person > HAND
        self.beside = beside(thing, self.noun)
        self.on_grass = facts.grass and self.noun in ON_GRASS.split()
        self.sky = facts.sky if self.kind in UNDER_THE_SKY.split() else None
        self.flies = self.sky == "around" and self.kind == "aircraft"
        self.stands_still = self.kind in STANDS_STILL.split() and not self.place and not self.in_hand
        self.turn = turn

    def short(self):
        if self.people:
            return self.with_people()
        forms = self.some_of(self.of_all(), FEW if self.trait or self.place else MORE)
        return {form: said for form, said in (forms | self.of_kind() | self.of_photo()).items() if said}

    def some_of(self, forms, count):
        """So many of the forms that fit every thing: those whose turn it is, other ones for the next class.

            classes by name    forms:  a b c d e f g ...
            accordion                  x x
            airplanes                      x x
            anchor                             x x

        A captioner writes what is likeliest. If every thing could be said in every form, it would be one form for all.
        """
        names, first = list(forms), self.turn * FEW
        return {name: forms[name] for name in (names[(first + k) % len(names)] for k in range(count))}

    def of_all(self):
        """What fits every thing."""
        n, q = self.noun, self.number
        whole = self.one and not self.beside
        still = self.stands_still and q
        forms = {
            "一架飞机": f"{q}{n}" if q else None,
            "这是一架飞机": f"这是{q}{n}",
            "照片里有一架飞机": f"照片里有{q}{n}",
            "一架飞机在画面中间": f"{q}{n}在画面中间" if self.one else None,
            "镜头前的飞机": f"镜头前的{n}",
            "摆着一把椅子": f"摆着{q}{n}" if still else None,
            "有一架飞机": f"有{q}{n}" if q else None,
            "图中有一架飞机": f"图中有{q}{n}",
            "一张飞机的照片": f"一张{n}的照片",
            "可以看到一架飞机": f"可以看到{q}{n}",
            "只有一架飞机": f"只有{q}{n}" if whole else None,
            "一把椅子摆在那里": f"{q}{n}摆在那里" if still else None,
            "画面里是一架飞机": f"画面里是{q}{n}",
            "这里有一架飞机": f"这里有{q}{n}",
            "一架飞机在镜头前": f"{q}{n}在镜头前" if q else None,
            "照片里的飞机": f"照片里的{n}",
            "放着的椅子": f"放着的{n}" if still else None,
            "画面中间有一架飞机": f"画面中间有{q}{n}" if self.one else None,
            "拍到了一架飞机": f"拍到了{q}{n}",
            "飞机的照片": f"{n}的照片",
            "眼前是一架飞机": f"眼前是{q}{n}",
            "图片上是一架飞机": f"图片上是{q}{n}",
            "这里放着一把椅子": f"这里放着{q}{n}" if still else None,
            "镜头前有一架飞机": f"镜头前有{q}{n}",
            "画面中的飞机": f"画面中的{n}",
            "照片拍的是一架飞机": f"照片拍的是{q}{n}",
            "单独的一架飞机": f"单独的{q}{n}" if whole else None,
            "镜头对着一架飞机": f"镜头对着{q}{n}",
            "一架飞机的图片": f"{q}{n}的图片" if q else None,
            "图片里有一架飞机": f"图片里有{q}{n}",
            "镜头里的飞机": f"镜头里的{n}",
            "面前有一架飞机": f"面前有{q}{n}",
        }
        return {form: (2.0, said) for form, said in forms.items() if said}

    def of_kind(self):
        """What holds for all of a kind or class."""
        n, q, a, p, kind = self.noun, self.number, self.trait, self.place, self.kind
        forms = {
            "停着一辆车": (1.5, f"停着{q}{n}") if p.startswith("停") and q else None,
            "长鼻子的大象": (1.9, f"{a}{n}") if a else None,
            "一头长鼻子的大象": (2.0, f"{q}{a}{n}") if a and q else None,
            "有一头长鼻子的大象": (1.5, f"有{q}{a}{n}") if a and q else None,
            "这是长鼻子的大象": (1.2, f"这是{q}{a}{n}") if a else None,
            "水面上的船": (1.8, f"{p}{n}") if p else None,
            "一艘水面上的船": (1.2, f"{q}{p}{n}") if p and q else None,
            "一艘船在水面上": (1.8, f"{q}{n}{predicate(p)}") if p and q else None,
            "水面上有一艘船": (1.5, f"{p[:-1]}有{q}{n}") if p and is_location(p) else None,
        }
        if kind == "food":
            forms |= {"好吃的披萨": (1.0, f"好吃的{n}"), "一份看起来很好吃的披萨": (0.8, f"看起来很好吃的{n}")}
        if n in DEAR.split():
            forms |= {"可爱的熊猫": (0.8, f"可爱的{n}"), "一只可爱的熊猫": (0.8, f"{q}可爱的{n}")}
        if kind == "flower":
            forms |= {"漂亮的花": (1.0, f"漂亮的{n}"), "一朵漂亮的花": (1.0, f"{q}漂亮的{n}")}
        if kind in ("building", "tree") and not p:
            forms |= {"立着一座塔": (1.0, f"立着{q}{n}"), "一座塔立在那里": (1.0, f"{q}{n}立在那里")}
        return forms

    def of_photo(self):
        """What was measured."""
        n, q, a, c, m = self.noun, self.number, self.trait, self.colour, self.measure
        forms = {}
        if c:
            forms |= {
                "白色的飞机": (5, f"{c}的{n}"),
                "一架白色的飞机": (5, f"{q}{c}的{n}"),
                "有一架白色的飞机": (3, f"有{q}{c}的{n}"),
                "这架飞机是白色的": (3, f"这{m}{n}是{c}的") if self.one and m != "-" else None,
                "一头长鼻子的灰色大象": (3, f"{q}{a}{c}{n}") if a else None,
            }
        if self.on_grass:
            forms |= {
                "草地上的大象": (8, f"草地上的{n}"),
                "草地上有一头大象": (6, f"草地上有{q}{n}"),
                "一头大象在草地上": (6, f"{q}{n}在草地上") if q else None,
                "草地上的一头大象": (5, f"草地上的{q}{n}") if q else None,
                "草地上的灰色大象": (6, f"草地上的{c}{n}") if c else None,
            }
        if self.flies:
            forms |= {
                "天上飞的飞机": (8, f"天上飞的{n}"),
                "一架飞机在天上飞": (8, f"{q}{n}在天上飞"),
                "空中有一架飞机": (6, f"空中有{q}{n}"),
            }
        elif self.sky:
            forms |= {
                "蓝天下的塔": (8, f"蓝天下的{n}"),
                "蓝天下有一座塔": (5, f"蓝天下有{q}{n}"),
                "蓝天下的一座塔": (5, f"蓝天下的{q}{n}") if q else None,
            }
        if self.facts.background:
            forms |= {
                "白色背景前的椅子": (0.25, f"{self.facts.background}背景前的{n}"),
                "背景是白色的椅子": (0.25, f"{q}{n}，背景是{self.facts.background}的"),
            }
        if self.facts.grey and not self.facts.background:
            forms |= {
                "黑白照片里的汽车": (1.5, f"黑白照片里的{n}"),
                "一张汽车的黑白照片": (1.5, f"一张{n}的黑白照片"),
            }
        if self.facts.fills:
            forms |= {
                "飞机的特写": (2, f"{n}的特写"),
                "近处的飞机": (2, f"近处的{n}"),
                "近处有一架飞机": (2, f"近处有{q}{n}"),
            }
        if self.beside == "餐桌":
            forms |= {"餐桌上的披萨": (8, f"餐桌上的{n}"), "餐桌上放着一个披萨": (8, f"餐桌上放着{q}{n}")}
        elif self.beside:
            forms |= {
                "电脑和鼠标": (7, f"{n}和{self.beside}"),
                "鼠标旁边的电脑": (5, f"{self.beside}旁边的{n}"),
                "一台电脑旁边有鼠标": (5, f"{q}{n}，旁边有{self.beside}"),
            }
        return forms

    def with_people(self):
        n, q, own, who = self.noun, self.number, self.thing.with_person, self.people
        forms = {
            "骑摩托车的人": (8, own) if own else None,
            "一个骑摩托车的人": (4, f"{who.removesuffix('人')}{own}") if own else None,
            "人和大象": (2, f"人和{n}"),
            "一个人和一头大象": (3, f"{who}和{q}{n}"),
            "一头大象旁边有一个人": (2, f"{q}{n}旁边有{who}") if self.kind != "clothes" else None,
            "一个人在大象旁边": (2, f"{who}在{n}旁边") if self.kind != "clothes" else None,
        }
        if self.kind == "clothes":
            verb = WORN.get(self.noun, "穿着")
            forms = {
                "穿着毛衣的人": (5, f"{verb}{n}的人"),
                "一个穿着毛衣的人": (5, f"{who.removesuffix('人')}{verb}{n}的人"),
                "有一个人穿着毛衣": (4, f"有{who}{verb}{n}"),
                "一个人穿着毛衣": (4, f"{who}{verb}{n}"),
            }
        return {form: said for form, said in forms.items() if said}

    def detailed(self):
        """Longer, as the detailed style has them: all that is known in one sentence."""
        n, q, a, p, c = self.noun, self.number, self.trait, self.place, self.colour
        if self.people:
            who, own = self.people, self.thing.with_person
            verb = f"{WORN.get(n, '穿着')}{n}" if self.kind == "clothes" else f"和{q}{n}在一起"
            before = f"有{who.removesuffix('人')}{own}" if own else f"{who}{verb}"
            return {
                "画面中有一个人和一头大象": (1, f"画面中有{who}{verb}"),
                "镜头前有一个骑摩托车的人": (1, f"镜头前{before}"),
            }
        rich = f"{a}{c + '的' if c and not a else c or ''}{n}"  # 长鼻子的灰色大象, 灰色的大象
        on = "草地上" if self.on_grass else "蓝天下" if self.sky and not self.flies else ""
        on = "餐桌上" if self.beside == "餐桌" else on
        heads = {
            "画面中间有一头长鼻子的灰色大象": f"画面中间有{q}{rich}",
            "照片里拍的是一头长鼻子的灰色大象": f"照片里拍的是{q}{rich}",
            "一头长鼻子的灰色大象出现在镜头前": f"{q}{rich}出现在镜头前" if q else None,
            "这里摆放着一把白色的椅子": f"这里摆放着{q}{rich}" if self.stands_still else None,
            "照片里有一头长鼻子的灰色大象": f"照片里有{q}{rich}",
            "近处可以看到一头灰色的大象": f"近处可以看到{q}{rich}",
            "镜头里有一头长鼻子的灰色大象": f"镜头里有{q}{rich}",
            "画面中间摆着一把白色的椅子": f"画面中间摆着{q}{rich}" if self.stands_still else None,
            "可以清楚地看到一头灰色的大象": f"可以清楚地看到{q}{rich}",
            "镜头对着一头长鼻子的灰色大象": f"镜头对着{q}{rich}",
            "图片上有一头长鼻子的灰色大象": f"图片上有{q}{rich}",
            "这里有一头长鼻子的灰色大象": f"这里有{q}{rich}",
            "画面里有一头长鼻子的灰色大象": f"画面里有{q}{rich}",
            "一把白色的椅子摆放在镜头前": f"{q}{rich}摆放在镜头前" if self.stands_still and q else None,
            "画面中是一头长鼻子的灰色大象": f"画面中是{q}{rich}",
            "图中可以看到一头灰色的大象": f"图中可以看到{q}{rich}",
            "镜头拍到了一头长鼻子的灰色大象": f"镜头拍到了{q}{rich}",
            "这是一头长鼻子的灰色大象": f"这是{q}{rich}",
            "图中是一头长鼻子的灰色大象": f"图中是{q}{rich}",
            "镜头前放着一把白色的椅子": f"镜头前放着{q}{rich}" if self.stands_still else None,
            "眼前有一头长鼻子的灰色大象": f"眼前有{q}{rich}",
            "有一头长鼻子的灰色大象": f"有{q}{rich}" if a or c else None,
            "一头长鼻子的灰色大象": f"{q}{rich}" if a or c else None,
            "那里有一头长鼻子的灰色大象": f"那里有{q}{rich}",
        }
        forms = self.some_of({form: (2.0, said) for form, said in heads.items() if said}, FEW)
        if on:
            forms |= {
                "草地上有一头长鼻子的灰色大象": (6, f"{on}有{q}{rich}"),
                "一头长鼻子的灰色大象在草地上": (6, f"{q}{rich}在{on}") if q else None,
            }
        if self.flies:
            forms |= {"一架白色的飞机在蓝天上飞": (8, f"{q}{rich}在蓝天上飞")}
        if p and is_location(p):
            forms |= {"水面上有一艘白色的船": (5, f"{p[:-1]}有{q}{rich}")}
        elif p:
            forms |= {"路边停着的白色汽车": (3, f"画面中有{q}{p}{rich}")}
        if self.facts.background and not on:
            forms |= {"黑色的背景前有一把椅子": (0.3, f"{self.facts.background}的背景前有{q}{rich}")}
        if self.beside and self.beside != "餐桌":
            forms |= {"一台电脑和旁边的鼠标": (5, f"{q}{rich}旁边有{self.beside}")}
        return {form: said for form, said in forms.items() if said}


WORN = {"帽子": "戴着", "头盔": "戴着", "泳帽": "戴着", "浴帽": "戴着", "假发": "戴着", "墨镜": "戴着", "面具": "戴着"}
WORN |= {"围巾": "戴着", "手套": "戴着", "项链": "戴着", "领带": "打着", "领结": "打着", "背包": "背着", "包": "拿着"}
WORN |= {"护膝": "戴着", "围裙": "围着", "口套": "戴着", "发夹": "戴着", "盔甲": "穿着"}


def number_of(thing) -> str | None:
    """一, 两, 几; as the table says, or as many as the detector is sure of. None: it is not."""
    if thing.number != "一":
        return thing.number
    words = {english.replace(" ", ""): chinese for english, chinese in object_words().items()}
    names = {name for name, word in words.items() if is_called(name, word, thing.nouns)}
    if measure_words()[thing.nouns[0]][1] in ("animal", "bird"):  # it takes a llama for a sheep or a dog
        names |= ANIMALS
    boxes = apart([box for box in thing.boxes if box[0] in names])
    sure = sum(box[1] >= SURE for box in boxes)
    if len(boxes) <= 1 or not sure:
        return "一" if len(boxes) <= 1 else None
    if sure < len(boxes):
        return "几" if sure > 2 else None
    return {2: "两", 3: "三"}.get(sure, "几")


def is_called(name, word, nouns) -> bool:
    """Whether the detector's class of this name and Chinese word is one of these nouns."""
    return word in nouns or bool({*SAME.get(name, "").split()} & {*nouns})


def apart(boxes):
    """Of boxes that overlap the surest ones."""
    kept = []
    for box in sorted(boxes, key=lambda box: -box[1]):
        if all(overlap(box, other) < APART for other in kept):
            kept.append(box)
    return kept


def overlap(box, other) -> float:
    """Intersection over the smaller of two boxes."""
    (_, _, *a), (_, _, *b) = box, other
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    return max(width, 0) * max(height, 0) / max(smaller, 1)


def people_in(thing) -> str:
    """人, with their number where the detector is sure of it."""
    boxes = apart([box for box in thing.boxes if box[0] == "person" and box[1] >= PERHAPS])
    if any(box[1] < SURE for box in boxes):
        return "几个人" if len(boxes) > 2 else "人"
    return {1: "一个人", 2: "两个人"}.get(len(boxes), "几个人")


def beside(thing, noun) -> str | None:
    """What the detector surely sees beside the thing; "餐桌", a dining table, below it."""
    words = {english.replace(" ", ""): chinese for english, chinese in object_words().items()}
    names = {box[0] for box in thing.boxes if box[1] >= SOMEBODY}
    own = [box for box in thing.boxes if is_called(box[0], words[box[0]], [noun])]
    if not own:  # the detector does not see the thing itself: anything else may be it
        return None
    if "diningtable" in names and noun in ("披萨", "杯子", "碗"):
        return "餐桌"
    others = [
        box
        for box in thing.boxes
        if box[1] >= SOMEBODY
        and box[0] in BESIDE.split()
        and box not in own
        and all(overlap(box, o) < APART for o in own)
    ]
    return words[others[0][0]] if others else None


def predicate(place) -> str:
    """水面上的 -> 在水面上; 撑开的 -> 撑开着; 停在路边的 -> 停在路边."""
    place = place.removesuffix("的")
    if is_location(place):
        return f"在{place}"
    return f"{place}着" if place[-1] in "开立放坐" else place


def is_location(place) -> bool:
    place = place.removesuffix("的")
    return place[-1] in "上中下里" and not any(sign in place for sign in "着在")


if __name__ == "__main__":
    main()
