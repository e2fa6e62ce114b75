"""Every table of kinds, in one place: a new mixer, optimizer, source, backend, ... is one line here."""

from typing import TYPE_CHECKING

from brt_dist.registry import Registry

if TYPE_CHECKING:
    from brt_dist.data.objectives.base import Objective
    from brt_dist.export.formats.base import WeightFormat
    from brt_dist.model.ffn.base import FFN
    from brt_dist.model.kernels.base import AttentionKernel
    from brt_dist.model.mixers.base import Mixer
    from brt_dist.optim.base import OptimizerKind
    from launch.backends.base import Backend
    from pipelines.sources.base import SourceKind

OPTIMIZERS: "Registry[OptimizerKind]" = Registry(
    "optimizer",
    {
        "adamw": "brt_dist.optim.adamw:AdamW",
        "adafactor": "brt_dist.optim.adafactor:Adafactor",
        "lion": "brt_dist.optim.lion:Lion",
    },
)

BACKENDS: "Registry[Backend]" = Registry(
    "backend",
    {
        "local": "launch.backends.local:LocalBackend",
        "ray": "launch.backends.ray_jobs:RayBackend",
        "slurm": "launch.backends.slurm:SlurmBackend",
        "kubernetes": "launch.backends.kubernetes:KubernetesBackend",
    },
)

SOURCES: "Registry[SourceKind]" = Registry(
    "source",
    {
        "text": "pipelines.sources.text:Text",
        "jsonl": "pipelines.sources.jsonl:Jsonl",
        "parquet": "pipelines.sources.parquet:Parquet",
        "tar": "pipelines.sources.tars:Tar",
        "git": "pipelines.sources.checkouts:Checkouts",
        "latex": "pipelines.sources.latex_trees:LatexTree",
        "hf": "pipelines.sources.hugging_face:SavedDataset",
        "mds": "pipelines.sources.mds:Mds",
    },
)

WEIGHT_FORMATS: "Registry[WeightFormat]" = Registry(
    "format of weights",
    {
        "safetensors": "brt_dist.export.formats.safetensors:Safetensors",
        "hf": "brt_dist.export.formats.hf:HuggingFace",
        "reference": "brt_dist.export.formats.reference:Reference",
    },
)

OBJECTIVES: "Registry[Objective]" = Registry(
    "objective",
    {
        "causal": "brt_dist.data.objectives.causal:NextToken",
        "mlm": "brt_dist.data.objectives.mlm:MaskedTokens",
        "denoise": "brt_dist.data.objectives.denoise:Denoising",
        "oracle": "brt_dist.data.objectives.oracle:Oracle",
    },
)

MIXERS: "Registry[Mixer]" = Registry(
    "mixer",
    {
        "window": "brt_dist.model.mixers.window:WindowMixer",
        "recurrent": "brt_dist.model.mixers.recurrent:RecurrentMixer",
        "bst": "brt_dist.model.mixers.bst:BlockStateMixer",
        "switchhead": "brt_dist.model.mixers.switchhead:SwitchHeadMixer",
        "fnet": "brt_dist.model.mixers.fnet:FNetMixer",
        "bidirectional": "brt_dist.model.mixers.bidirectional:BidirectionalMixer",
        "linear": "brt_dist.model.mixers.linear:LinearMixer",
        "delta": "brt_dist.model.mixers.delta:DeltaMixer",
        "gated_delta": "brt_dist.model.mixers.gated_delta:GatedDeltaMixer",
        "memsizer": "brt_dist.model.mixers.memsizer:MemSizerMixer",
        "fourier_memory": "brt_dist.model.mixers.fourier_memory:FourierMemoryMixer",
        "nprf_rpe": "brt_dist.model.mixers.nprf_rpe:KernelMixer",
        "lstm": "brt_dist.model.mixers.lstm:LSTMMixer",
    },
)
FFNS: "Registry[FFN]" = Registry(
    "FFN",
    {
        "relu": "brt_dist.model.ffn.relu:ReluFFN",
        "gelu": "brt_dist.model.ffn.gelu:GeluFFN",
        "swiglu": "brt_dist.model.ffn.swiglu:SwigluFFN",
        "sparse": "brt_dist.model.ffn.sparse:SparseFFN",
        "sigma_moe": "brt_dist.model.ffn.sigma_moe:SigmaMoEFFN",
    },
)

ATTENTION_KERNELS: "Registry[AttentionKernel]" = Registry(
    "attention kernel",
    {
        "plain": "brt_dist.model.kernels.plain:Plain",
        "blocked": "brt_dist.model.kernels.blocked:Blocked",
        "triton": "brt_dist.model.kernels.triton:Triton",
    },
)
