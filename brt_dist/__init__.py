"""Distributed pretraining of Block-Recurrent Transformers."""

__version__ = "0.1.0"
