"""Simulates training from the seconds of its parts: a step of a pipeline, and runs of days in which machines fail."""
