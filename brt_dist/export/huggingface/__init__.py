"""What an export for Hugging Face ships: the model in plain torch, as `transformers` loads it (`trust_remote_code`).

The two files below import nothing of this package, because they are copied into the exported folder.
"""
