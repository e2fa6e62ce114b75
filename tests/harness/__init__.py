"""Evaluation with other people's tools, each in its own environment (`make test-lm-eval`)."""
