"""Evaluation by tools of others, each in an environment of its own (`make test-lm-eval`)."""
