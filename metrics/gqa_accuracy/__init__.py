"""GQA accuracy; the plain function is `metrics.gqa_accuracy.answers.gqa_scores`."""
