"""Reproduces the paper's table and ablations: the kit (`reproduce/`), its cost, data, training and results."""
