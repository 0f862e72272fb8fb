"""Chinese caption scores; the plain function is `metrics.caption_zh.scores.caption_scores`."""
