import json
import re

import pytest
from conftest import shared_path

from modeling_mengzi_oscar.labels.chinese import (
    ATTRIBUTES_ZH,
    OBJECTS_ZH,
    attribute_to_chinese,
    load_dictionary,
    to_chinese,
    untranslated,
)
from modeling_mengzi_oscar.labels.tables import read_table

WITH_LATIN_LETTERS = {"tee shirt": "T恤", "tshirt": "T恤"}  # how it is written in Chinese; nothing else

# What a photo shows, where a word has another common sense (which machine translation tends to pick).
OBJECT_SENSES = {
    "ad": "广告", "back": "背部", "background": "背景", "bang": "刘海", "bat": "球棒", "batter": "击球手",
    "blind": "百叶窗", "bow": "蝴蝶结", "bug": "虫子", "cabinet": "柜子", "can": "易拉罐", "chip": "薯片",
    "cleat": "钉鞋", "coke": "可乐", "conductor": "列车员", "console": "游戏机", "court": "球场", "cover": "罩子",
    "crane": "起重机", "crust": "饼皮", "curb": "路缘", "cycle": "自行车", "diamond": "菱形", "drink": "饮料",
    "dugout": "球员席", "engineer": "火车司机", "face": "脸", "fan": "风扇", "field": "草地", "flip flop": "人字拖",
    "frosting": "糖霜", "fry": "薯条", "glasses": "眼镜", "hood": "引擎盖", "horn": "犄角", "icing": "糖霜",
    "jean": "牛仔裤", "key": "按键", "kiwi": "猕猴桃", "letter": "字母", "light": "灯", "lime": "青柠", "log": "原木",
    "lot": "停车场", "magnet": "冰箱贴", "mantle": "壁炉台", "match": "比赛", "meter": "停车计时器",
    "monitor": "显示器", "mouse": "鼠标", "orange": "橙子", "ottoman": "脚凳", "outlet": "插座", "overall": "背带裤",
    "pant": "裤子", "pitcher": "投手", "plug": "插头", "pole": "杆子", "post": "柱子", "produce": "果蔬", "ram": "公羊",
    "range": "炉灶", "reign": "缰绳", "remote": "遥控器", "scale": "秤", "seal": "海豹", "short": "短裤",
    "sign": "牌子", "sink": "水槽", "skiier": "滑雪者", "slack": "长裤", "speaker": "音箱", "spoke": "辐条",
    "star": "星星", "step": "台阶", "stick": "棍子", "straw": "吸管", "stroller": "婴儿车", "suit": "西装",
    "surf": "海浪", "switch": "开关", "tablet": "平板电脑", "tank top": "背心", "tarmac": "停机坪", "tie": "领带",
    "tissue": "纸巾", "toast": "吐司", "traffic": "车流", "turkey": "火鸡", "tv stand": "电视柜", "vanity": "盥洗台",
    "wake": "尾流", "watch": "手表",
}  # fmt: skip
ATTRIBUTE_SENSES = {
    "back": "后面", "blind": "失明", "chocolate": "巧克力", "clear": "清澈", "cross": "十字形", "dead": "枯死",
    "glass": "玻璃", "light": "浅色", "metal": "金属", "off": "关着", "on": "开着", "orange": "橙色", "plain": "素色",
    "short": "短的", "solid": "纯色", "square": "方形", "stone": "石制", "straw": "稻草", "stuffed": "毛绒",
    "wood": "木制",
}  # fmt: skip


@pytest.mark.parametrize("name", ["objects_zh.tsv", "attributes_zh.tsv", "imagenet_zh.tsv"])
def test_tables_are_whole_and_name_nothing_twice(name):
    rows = read_table(name)
    assert all(value and value == value.strip() for row in rows for value in row.values())  # none missing, none more
    first = next(iter(rows[0]))
    assert len({row[first] for row in rows}) == len(rows)


def test_every_class_of_the_detector_has_a_word():
    classes = json.loads(shared_path("data/chinese_label.json").read_text(encoding="utf-8"))
    assert set(OBJECTS_ZH) == set(classes)


def test_sizes():
    assert len(OBJECTS_ZH) == 1594
    assert len(ATTRIBUTES_ZH) >= 400


@pytest.mark.parametrize("table", [OBJECTS_ZH, ATTRIBUTES_ZH], ids=["objects", "attributes"])
def test_words_are_short_and_chinese_and_keys_are_normalised(table):
    odd = {english: word for english, word in table.items() if not re.fullmatch("[\u4e00-\u9fff]{1,7}", word)}
    assert odd == {english: word for english, word in WITH_LATIN_LETTERS.items() if english in table}
    assert all(re.fullmatch("[a-z]+([ -][a-z]+)*", english) for english in table)


def test_objects_are_named_as_in_a_photo():
    assert {label: to_chinese(label) for label in OBJECT_SENSES} == OBJECT_SENSES


def test_attributes_have_their_own_senses():
    assert {label: attribute_to_chinese(label) for label in ATTRIBUTE_SENSES} == ATTRIBUTE_SENSES


def test_each_table_stands_in_for_the_other():
    assert "striped" not in OBJECTS_ZH
    assert to_chinese("striped") == "条纹"
    assert "zebra" not in ATTRIBUTES_ZH
    assert attribute_to_chinese("zebra") == "斑马"


@pytest.mark.parametrize("label", ["window", " Window\n", "WINDOW", "window,windows", "Windows, Window"])
def test_case_spaces_and_variants_do_not_matter(label):
    assert to_chinese(label) == "窗户"


def test_unknown_labels_stay_english_and_are_reported():
    labels = ["cat", " Flux Capacitor ", "striped", "flux capacitor", "quux,quuxes"]
    assert to_chinese(labels[1]) == attribute_to_chinese(labels[1]) == "Flux Capacitor"
    assert untranslated(labels) == [" Flux Capacitor ", "flux capacitor", "quux,quuxes"]
    assert untranslated(labels, {"flux capacitor": "通量电容"}) == ["quux,quuxes"]
    assert untranslated([*OBJECTS_ZH, *ATTRIBUTES_ZH]) == []


def test_the_users_dictionary_wins(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({" Cat": "猫咪 ", "orange": "橘"}), encoding="utf-8-sig")  # Notepad writes a BOM
    dictionary = load_dictionary(path)
    assert dictionary == {"cat": "猫咪", "orange": "橘"}
    assert to_chinese("Cat", dictionary) == to_chinese("cats,cat", dictionary) == "猫咪"
    assert attribute_to_chinese("orange", dictionary) == "橘"
    assert to_chinese("dog", dictionary) == "狗"


@pytest.mark.parametrize(
    "content",
    [b'["cat"]', b'"cat"', b"{", b"", b'{"cat": 1}', b'{"cat": " "}', b'{"cat": null}', b'{"cat": "\xc3\xa8\xff"}'],
)
def test_a_dictionary_that_is_none_is_refused_by_name(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_dictionary(path)


def test_the_dictionary_of_the_released_models_loads():
    released = load_dictionary(shared_path("data/chinese_label.json"))
    assert len(released) == 1594
    assert to_chinese("background", released) == "出身背景"  # the word a released checkpoint was trained on
    assert untranslated(released, released) == []
