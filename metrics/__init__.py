"""Scores of captioning, retrieval and question answering: plain functions, each with an `evaluate` module beside it."""
