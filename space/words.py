"""Every text of the pages and messages, in Chinese and in English, and the mistakes that are told to people."""

import gradio as gr
from markupsafe import Markup

WORDS = {  # key -> Chinese, English; {names} are filled in, escaped
    "title": ("孟子看图", "Mengzi Oscar"),
    "tagline": ("一句中文，说出照片里有什么", "Photos in, Chinese sentences out"),
    "theme": ("切换明暗", "light or dark"),
    "photo": ("照片", "Photo"),
    "drop": ("拖入、粘贴或点击选择照片", "Drop, paste or pick a photo"),
    "samples": ("没有照片？试试这些", "No photo at hand? Try one"),
    # 看图说话
    "caption": ("看图说话", "Caption"),
    "caption_button": ("写一句", "Caption it"),
    "caption_empty": ("放一张照片，这里就会写出一句话。", "Give it a photo, and a sentence appears here."),
    "word_hint": ("点击词语，查看它关注的区域", "Click a word to see the regions it attends to"),
    "beams_list": ("候选句子", "Candidates"),
    "score_note": (
        "条形：每个字的平均概率（几何平均）",
        "bars: mean probability per character (geometric mean)",
    ),
    "probably_wrong": ("可能不准", "probably wrong"),
    "doubt_note": (
        "“可能不准”：在未参加训练的照片上，这类句子说对的不到一半；百分数为说对的比例",
        "“probably wrong”: on photos it never saw, fewer than half of such sentences were right; the % says how many",
    ),
    "tags": ("识别到的物体", "Detected"),
    "tags_doubt": ("带“？”：置信度低", "with “？”: low confidence"),
    "copy": ("复制", "Copy"),
    "share": ("分享", "Share"),
    "copied": ("已复制", "Copied"),
    "settings": ("设置", "Settings"),
    "num_beams": ("候选句数", "Sentences"),
    "num_beams_info": ("束搜索（beam search）宽度，也是给出的句数", "beam width, and how many are shown"),
    "max_length": ("最大长度", "Length"),
    "max_length_info": ("最多字数（含起止符）", "maximum characters, start and end included"),
    "detailed": ("详细描述", "More detail"),
    "detailed_info": ("另一种风格，句子更长", "another style, with longer sentences"),
    "temperature": ("温度", "Temperature"),
    "temperature_info": ("0：取概率最高的句子；越大越随机", "0: the likeliest sentences; higher: more random"),
    # 图文匹配
    "match": ("图文匹配", "Match"),
    "match_sentences": ("一张照片，多个句子", "Photo → sentences"),
    "match_photos": ("一个句子，多张照片", "Sentence → photos"),
    "sentences": ("句子（每行一句）", "Sentences (one per line, in Chinese)"),
    "match_button": ("匹配", "Match them"),
    "match_empty": (
        "哪句话描述的是这张照片？结果按概率排序。",
        "Which sentence is about the photo? Ranked by probability.",
    ),
    "sentence": ("句子", "Sentence (in Chinese)"),
    "photos": ("照片（不传则用示例照片）", "Photos (none: the sample photos)"),
    "with_samples": ("加上示例照片", "With the sample photos"),
    "rank_button": ("找照片", "Find the photo"),
    "rank_empty": ("哪张照片最符合这句话？结果按概率排序。", "Which photo fits the sentence? Ranked by probability."),
    # 看图问答
    "ask": ("看图问答", "Ask"),
    "question": ("问题", "Question (in Chinese)"),
    "question_example": ("例如：图里有几个人？", "e.g. 图里有几个人？"),
    "ask_button": ("问", "Ask it"),
    "ask_empty": ("就照片提一个问题，列出概率最高的五个答案。", "Ask about the photo: the five likeliest answers."),
    "suggestions": ("可以这样问", "Try one of these"),
    # 批量
    "batch": ("批量", "Batch"),
    "batch_files": ("多张照片，或一个 zip", "Many photos, or a zip"),
    "batch_button": ("全部生成描述", "Caption all"),
    "cancel": ("停止", "Stop"),
    "batch_empty": (
        "最多 {photos} 张；结果可导出为 CSV 或 JSON。",
        "Up to {photos} photos; results can be saved as CSV or JSON.",
    ),
    "batch_progress": ("{done} / {total}", "{done} / {total}"),
    "file": ("文件", "File"),
    "probability": ("概率", "Probability"),
    # 关于
    "about": ("关于", "About"),
    "checkpoint": ("模型", "Checkpoint"),
    "region_model": ("区域模型", "Region model"),
    "regions": ("{count} 个区域", "{count} regions"),
    "grid_regions": ("{backbone}，{side} × {side} 格", "{backbone}, {side} × {side} grid cells"),
    "object_regions": ("{detector} 目标检测器，{classes} 类；", "{detector} object detector, {classes} classes;"),
    "detector": ("VinVL 目标检测器，{classes} 类", "VinVL object detector, {classes} classes"),
    "tasks": ("支持的任务", "Tasks"),
    "parameters": ("{captioner} M + 区域模型 {regions} M 参数", "{captioner} M + {regions} M parameters"),
    "data": ("数据", "Data"),
    "data_mini": (
        "Flickr8k-CN（Li 等，ICMR 2016）6,000 张、AIC-ICC（AI Challenger 2017）950 张照片，每张配五句人工撰写的中文，"
        "问答数据由这类句子生成；Caltech-101 和 ImageNet 的 3,346 张单个物体照片，句子根据标注生成；"
        "另有 16,485 个不配照片的句子（COCO-CN、xFlickr&CO、COCO 的机器翻译）。"
        "视觉骨干网络用 ImageNet 权重初始化，目标检测器为 NanoDet-g（COCO）。",
        "6,000 photos of Flickr8k-CN (Li et al., ICMR 2016) and 950 of AIC-ICC (AI Challenger 2017) with five Chinese "
        "sentences each, written by people, from which the questions were made; 3,346 photos of single things "
        "(Caltech-101, ImageNet) with sentences made of what is known of them; 16,485 sentences without photos "
        "(COCO-CN, xFlickr&CO, machine translations of COCO). The visual backbone was initialised from ImageNet "
        "weights; the object detector is NanoDet-g (COCO).",
    ),
    "data_card": ("见模型卡：{link}", "see the model card: {link}"),
    "limits": ("局限", "Limits"),
    "limits_mini": (
        "训练数据以人、狗、运动、街景和几百种单个物体为主，其他物体无法识别，周围的景物可能是编造的。"
        "数量、颜色和动作经常出错，性别也会认错。请勿用于对准确性有要求的场合。",
        "It knows people, dogs, sports, streets and a few hundred single things. It cannot name others and may make "
        "up what surrounds a thing. Counts, colours, actions and genders are often wrong. Do not use it where errors "
        "matter.",
    ),
    "limits_card": (
        "句子和答案可能出错，请勿用于对准确性有要求的场合。",
        "Sentences and answers can be wrong. Do not use them where errors matter.",
    ),
    "weights": ("权重许可", "Weights"),
    "weights_mini": (
        "仅供研究使用（受照片许可限制）；代码采用 Apache-2.0",
        "research use only, as the photos are; code: Apache-2.0",
    ),
    "weights_card": ("见模型卡；代码采用 Apache-2.0", "see the model card; code: Apache-2.0"),
    "uploads": ("上传", "Uploads"),
    "uploads_limits": (
        "每个文件不超过 {megabytes} MB、{megapixels} 百万像素；约一小时后删除，不作他用。",
        "Files up to {megabytes} MB and {megapixels} megapixels; deleted within an hour or so, used for nothing else.",
    ),
    "privacy": ("隐私", "Privacy"),
    "privacy_note": ("本页面不向其他任何地方发送数据。", "This page sends no data anywhere else."),
    "credits": ("示例照片", "Sample photos"),
    "seconds": ("{seconds} 秒", "{seconds} s"),
    # what can go wrong
    "no_photo": ("请先选择一张照片。", "Give a photo first."),
    "no_photos": ("请先选择照片。", "Give some photos first."),
    "too_many_bytes": (
        "文件大小为 {megabytes} MB，上限为 {limit} MB。请缩小后重试。",
        "The file has {megabytes} MB; the limit is {limit} MB. Scale it down first.",
    ),
    "too_many_pixels": (
        "照片为 {width} × {height} 像素，上限为 {limit} 百万像素。请缩小后重试。",
        "The photo has {width} × {height} pixels; the limit is {limit} megapixels. Scale it down first.",
    ),
    "not_a_photo": (
        "无法识别此文件。请另存为 JPEG、PNG 或 WebP。",
        "This file is not a photo we can read. Save it as JPEG, PNG or WebP.",
    ),
    "needs_library": (
        "此服务不支持 HEIC / AVIF。请另存为 JPEG、PNG 或 WebP。",
        "HEIC and AVIF photos cannot be read here. Save it as JPEG, PNG or WebP.",
    ),
    "damaged": ("照片文件已损坏，请重新下载或复制。", "The photo's file is damaged. Download or copy it again."),
    "too_small": (
        "照片仅 {width} × {height} 像素，尺寸过小。",
        "The photo has only {width} × {height} pixels: too small.",
    ),
    "bad_zip": ("无法打开此 zip，请重新打包。", "This zip cannot be opened. Pack it again."),
    "zip_names": (
        "此 zip 含有不安全的文件名（如 ../），请重新打包。",
        "This zip has unsafe file names (such as ../). Pack it again.",
    ),
    "zip_too_big": (
        "此 zip 解压后过大（上限 {limit} MB，压缩比不超过 {ratio}）。",
        "This zip is too large when opened (up to {limit} MB, and packed no more than {ratio} to 1).",
    ),
    "zip_encrypted": ("此 zip 已加密，请不设密码重新打包。", "This zip has a password. Pack it without one."),
    "too_many_photos": ("一次最多 {limit} 张照片。", "Up to {limit} photos at a time."),
    "no_question": ("请先输入问题。", "Write a question first."),
    "no_sentence": ("请先输入句子。", "Write a sentence first."),
    "too_long": ("共 {length} 个字，上限为 {limit} 个。", "{length} characters; the limit is {limit}."),
    "too_many_sentences": ("共 {count} 句，上限为 {limit} 句。", "{count} sentences; the limit is {limit}."),
    "out_of_range": (
        "{name} 必须在 {low} 到 {high} 之间。",
        "{name} must be a number from {low} to {high}.",
    ),
    "no_style": (
        "此模型没有这种风格，可选：{known}。",
        "This checkpoint does not have that style; it has: {known}.",
    ),
    "not_whole": (
        "{name} 必须是 {low} 到 {high} 之间的整数。",
        "{name} must be a whole number from {low} to {high}.",
    ),
    "not_text": ("文本含有不完整的字符。", "The text contains half a character (a lone surrogate). Fix it first."),
    "not_yes_or_no": ("{name} 必须是 true 或 false。", "{name} must be true or false."),
    "no_captions": (
        "此模型只支持匹配或问答，不能生成描述。请换用能生成描述的模型：MODEL_ID=…",
        "This checkpoint writes no captions, it only matches or answers. Name one that does: MODEL_ID=…",
    ),
    "no_head": (
        "此模型没有训练过这个任务（{task}）。请换用训练过的模型：MODEL_ID=…",
        "This checkpoint was not trained to do this ({task}). Name one that was: MODEL_ID=…",
    ),
    "no_links": (
        "请上传文件本身，不支持网址。",
        "Send the file itself: this server does not fetch URLs.",
    ),
    "not_uploaded": (
        "请上传文件本身；上传的文件约一小时后删除。",
        "Upload the file itself; uploads are deleted within an hour or so.",
    ),
    "bad_request": (
        "请求与接口不符：参数的个数和类型见页面底部的 API 说明。",
        'The request does not fit this endpoint: see "Use via API" at the foot of the page for its inputs.',
    ),
    "no_route": (
        "接口不存在，请见页面底部的 API 说明。",
        'The demo has no such route: see "Use via API" at the foot of the page.',
    ),
    "busy": ("排队人数过多，请稍后再试。", "Too many requests are waiting. Try again in a while."),
    "body_too_large": (
        "请求超过 {limit} MB。照片请用 /gradio_api/upload 上传。",
        "The request is larger than {limit} MB. Send photos by /gradio_api/upload.",
    ),
    "only_files": ("上传内容只能包含文件。", "An upload may contain files only."),
    "no_room": ("服务器空间不足，请稍后再试。", "The server is out of disk space. Try again in a while."),
    "body_too_slow": ("请求传输过慢，已中止。", "The request was too slow and was aborted."),
    "unexpected": (
        "服务出错，与你的操作无关，请重试。",
        "Something went wrong here, not with you. Please try again.",
    ),
}

GRADIO_WORDS = (  # gradio's own that our pages show: Chinese, English
    ("将文件拖放到此处", "Drop File Here"),
    ("- 或 -", "- or -"),
    ("点击上传", "Click to Upload"),
    ("将图像文件拖放到此处以上传", "Drop an image file here to upload"),
    ("通过 API 或 MCP 使用", "Use via API or MCP"),
    ("通过 API 使用", "Use via API"),
)


class UserError(gr.Error):
    """A mistake told to the person who made it; `key` is of `WORDS`, `values` fill its text."""

    def __init__(self, key: str, **values):
        self.key, self.values = key, values
        chinese, english = (text.format(**values) for text in WORDS[key])
        super().__init__(f"{english} / {chinese}", print_exception=False)


def cannot(task: str) -> UserError:
    """What is said where a checkpoint was not trained for a task."""
    return UserError("no_captions") if task == "caption" else UserError("no_head", task=task)


def say(key: str, **values) -> Markup:
    """Both languages as HTML, values escaped; the page shows the one that was chosen (style.css)."""
    chinese, english = (Markup(text).format(**values) for text in WORDS[key])
    return Markup('<span class="zh" lang="zh-CN">{}</span><span class="en" lang="en">{}</span>').format(
        chinese, english
    )


i18n = gr.I18n(
    zh={key: chinese for key, (chinese, _) in WORDS.items()},
    en={key: english for key, (_, english) in WORDS.items()},
)
