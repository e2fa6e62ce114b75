"""The backends by name."""

from brt_dist.errors import ConfigError
from launch.backends.job import Backend


def backend(name: str) -> Backend:
    """The backend of that name.  Nothing heavy is imported before it is used."""
    if name == "local":
        from launch.backends.local import LocalBackend

        return LocalBackend()
    if name == "ray":
        from launch.backends.ray_jobs import RayBackend

        return RayBackend()
    if name == "slurm":
        from launch.backends.slurm import SlurmBackend

        return SlurmBackend()
    if name == "kubernetes":
        from launch.backends.kubernetes import KubernetesBackend

        return KubernetesBackend()
    raise ConfigError(f"no backend {name!r}; there are local, ray, slurm, kubernetes")
