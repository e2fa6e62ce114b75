"""Nodes from this machine, or of a running Ray cluster.  Builds of datasets get theirs in the same way."""

from pipelines.cluster import joining_environment, local_environment, ray_cluster

__all__ = ["joining_environment", "local_environment", "ray_cluster"]
