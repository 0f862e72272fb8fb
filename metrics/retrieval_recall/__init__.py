"""Image-text retrieval; the plain function is `metrics.retrieval_recall.recall.retrieval_recall`."""
