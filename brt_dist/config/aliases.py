"""Other trainers' names for our keys: an unknown key is looked up by meaning before it is compared by spelling."""

_NAMES = {
    "model.width": "dim d_model hidden hidden_size hidden_dim n_embd embed_dim model_dim",
    "model.layers": "n_layer n_layers num_layers num_hidden_layers depth",
    "model.heads": "n_head n_heads num_heads num_attention_heads",
    "model.head_dim": "dim_head d_head kv_channels",
    "model.vocab_size": "vocab n_vocab",
    "model.window": "window_size attention_window sliding_window block_width",
    "model.mixers.recurrent.states": "num_states num_state_vectors n_states",
    "model.ffns.relu.width": "ffn_dim d_ff ffn_hidden_size intermediate_size",
    "data.segment": "seq_len seq_length seqlen sequence_length max_seq_len block_size context_length n_ctx",
    "data.streams": "batch batch_size global_batch_size train_batch_size bs",
    "parallel.micro_batch": "micro_batch_size mbs per_device_batch_size train_micro_batch_size_per_gpu",
    "parallel.tensor": "tp tp_size tensor_parallel tensor_parallel_size tensor_model_parallel_size",
    "parallel.pipeline": "pp pp_size pipeline_parallel pipeline_parallel_size pipeline_model_parallel_size",
    "parallel.data": "dp dp_size data_parallel data_parallel_size",
    "parallel.recompute": "activation_checkpointing gradient_checkpointing checkpoint_activations",
    "optimizer.learning_rate": "lr max_lr peak_lr",
    "optimizer.warmup_steps": "warmup warmup_iters lr_warmup_steps num_warmup_steps",
    "optimizer.weight_decay": "wd decay",
    "optimizer.clip_norm": "clip grad_clip gradient_clipping max_grad_norm clip_grad",
    "run.steps": "max_steps num_steps total_steps train_steps train_iters max_iters iterations",
    "run.directory": "output_dir out_dir save_dir run_dir logdir",
    "run.checkpoint_every": "save_every save_interval save_steps save_freq checkpoint_interval",
    "run.evaluate_every": "eval_every eval_interval eval_steps val_interval",
    "run.precision": "dtype bf16 fp16 mixed_precision",
    "launch.nodes": "num_nodes nnodes n_nodes",
}
ALIASES = {alias: key for key, aliases in _NAMES.items() for alias in aliases.split()}
"""our key for each name that others use"""


def key_meant(name: str) -> str | None:
    """Our key for a name that others use, whatever its dashes and capitals; None for any other name."""
    return ALIASES.get(name.lower().replace("-", "_"))
