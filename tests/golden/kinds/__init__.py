"""Golden files of kinds of mixers and FFNs: one module each, found by its name.  See `tests/golden/check.py`."""
