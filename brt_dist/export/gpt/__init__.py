"""Plain GPTs of Hugging Face as initial weights: what maps is taken, the rest starts as in a new run.

shape.py says what a config.json describes, rules.py which tensor of ours is made of which of theirs, and folder.py
opens the folder or the hub's copy.
"""
