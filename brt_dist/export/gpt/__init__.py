"""Plain Hugging Face GPTs as initial weights: weights that map are used, the rest starts as in a new run.

shape.py says what a config.json describes, rules.py which tensor of ours is made of which of theirs, and folder.py
opens the folder or the hub's copy.
"""
