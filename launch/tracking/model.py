"""Logs the weights of a run to its MLflow run, as a model: `python -m launch.tracking.model RUN [--register NAME]`.

The newest checkpoint is exported for transformers (as by `brt export --to hf`) and wrapped for MLflow's pyfunc, so
that `mlflow models serve` runs it where this package is not installed.
"""

import argparse
import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from brt_dist.config.loading import load
from brt_dist.errors import BrtError, ConfigError, ExitCode
from brt_dist.run_directory import RunDirectory
from launch.run.redact import redact
from launch.tracking.client import connect
from launch.tracking.state import SyncState
from launch.tracking.uri import fingerprint, tracking_uri

CODE = Path(__file__).with_name("served_model.py")
NAME = "model"
_TRANSFORMERS = "transformers>=5,<6"
_REQUIRED = ("mlflow", "torch", "safetensors")


def log_model(run: Path, register: str | None = None) -> str:
    """Export, log and register; returns the URI of the model.

    Args:
        run: the run directory; it was sent to MLflow before.
        register: name in the model registry; None: not registered.

    Raises:
        ConfigError: the run is not tracked, or the exported code does not support its network.
        CheckpointError: there is no checkpoint.
    """
    config = load(RunDirectory.existing(run).config).config
    uri = tracking_uri(config.run.tracking, run)
    state = SyncState.load(run, fingerprint(uri))
    if state.run_id is None:
        raise ConfigError(f"{run} has no run in MLflow; send it first: python -m launch.tracking.syncer {run}")
    with tempfile.TemporaryDirectory(prefix="brt-model-") as folder:
        exported = Path(folder) / "hf"
        step = _export(run, exported)
        return send_model(uri, state, exported, step, register)


def _export(run: Path, out: Path) -> int:
    """Write the newest weights for transformers; returns their step."""
    from brt_dist.export.open import open_weights
    from brt_dist.kinds import WEIGHT_FORMATS

    with open_weights(str(run)) as weights:
        if weights.tokenizer is None:
            raise ConfigError(f"{run}: its dataset has moved, so there is no tokenizer to log with the model")
        WEIGHT_FORMATS["hf"].write(weights, out)
        return int(weights.facts.get("step", 0))


def send_model(uri: str, state: SyncState, exported: Path, step: int, register: str | None) -> str:
    """Log an export for transformers as a model of the MLflow run of `state`; returns the URI of the model."""
    connect(uri)  # short timeouts
    os.environ["MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT"] = "600"  # weights are larger than a table
    import mlflow
    from mlflow.models import Model

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(
        experiment_id=state.experiment_id
    )  # otherwise it goes to the default experiment, in the working folder
    info = Model.log(
        None,
        mlflow.pyfunc,
        name=NAME,
        run_id=state.run_id,
        registered_model_name=register,
        python_model=str(CODE),
        artifacts={"model": str(exported)},
        signature=_signature(),
        pip_requirements=requirements(),
        step=step,
    )
    return str(info.model_uri)


def requirements() -> list[str]:
    """What a server of the model installs."""
    return [_TRANSFORMERS, *(found for name in _REQUIRED if (found := _pinned(name)) is not None)]


def _pinned(name: str) -> str | None:
    try:
        return f"{name}=={version(name).partition('+')[0]}"
    except PackageNotFoundError:
        return None


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    params = [
        ParamSpec("max_new_tokens", DataType.long, 100),
        ParamSpec("temperature", DataType.double, 1.0),
        ParamSpec("seed", DataType.long, 0),
    ]
    return ModelSignature(
        Schema([ColSpec(DataType.string, "prompt")]), Schema([ColSpec(DataType.string)]), ParamSchema(params)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.tracking.model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--register", metavar="NAME", help="also register the model under this name")
    options = parser.parse_args(arguments)
    try:
        print(redact(log_model(options.run, options.register)))
    except BrtError as error:
        print(redact(str(error)), file=sys.stderr)
        return int(error.exit_code)
    except Exception as error:  # whatever a server, a network or MLflow may raise
        print(redact(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return int(ExitCode.ENVIRONMENT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
