"""Which Chinese sentences speak of people: what a caption of a photo without any must not do."""

import re

NOBODY = re.compile(  # words with 人, 男, 女, 孩 .. in them that are no people
    "吉他|其他|旅客列车|无人|没有人|没人|空无一人|机器人|雪人|稻草人|木偶人|人行|人工|人造|人力|人民币|人参|人字|人形|人物|美人鱼|仙人掌|人像|男装|女装|女鞋|男鞋|"
    "女士?包|儿童(?:车|床|玩具|房|椅|座椅)|婴儿(?:车|床)|洋娃娃|布娃娃|学生证|或者|作者"
)
PEOPLE = re.compile(
    "人|男|女|孩|儿童|婴儿|宝宝|娃娃|少年|青年|老年|老汉|老太|老头|小伙|姑娘|先生|妇|爷爷|奶奶|爸|妈|父亲|母亲|父子|母子|夫妻|夫妇|情侣|兄弟|"
    "姐妹|姐|哥|弟弟|妹|叔|阿姨|小子|小朋友|学生|老师|教师|教练|医生|护士|警察|士兵|军官|战士|厨师|司机|服务员|演员|歌手|模特|舞者|"
    "运动员|球员|选手|队员|守门员|裁判|骑手|骑士|牛仔(?!裤|衣|布|帽)|拳击手|水手|乘客|游客|旅客|顾客|观众|群众|大众|民众|新郎|新娘|"
    "小丑|宇航员|消防员|工匠|乐队|球队|儿子|他|她|[滑冲攀骑登舞跑行演奏记学前].{0,2}者"
)


def names_people(sentence: str) -> bool:
    """Whether somebody is spoken of: 一个男人, 打球的运动员; not 机器人, 人行道."""
    return PEOPLE.search(NOBODY.sub("，", sentence)) is not None
