"""VQA accuracy; the plain function is `metrics.vqa_accuracy.answers.vqa_scores`."""
