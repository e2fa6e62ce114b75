"""`brt doctor`."""

import json
import time
from dataclasses import asdict

import click

from brt_dist.errors import ExitCode
from launch.commands.arguments import config_argument, json_option, split

# The smallest config that has a layout; only a temporary file is written beside its folder.
_ALONE = "data: {dataset: brt-doctor-dataset}\nrun: {directory: brt-doctor, steps: 1}\noptimizer: {warmup_steps: 0}\n"


@click.command()
@config_argument
@click.option("--ray-address", metavar="HOST:PORT", help="Ray cluster to check, instead of launch.ray_address.")
@json_option
def doctor(settings: tuple[str, ...], ray_address: str | None, as_json: bool) -> int:
    """Check the nodes that a run would get, and name those with problems; takes a minute or two.

    \b
      brt doctor                                          this machine
      brt doctor my.yaml --ray-address 10.0.0.1:6379      the nodes and the layout of my.yaml
      brt doctor --ray-address auto launch.nodes=2 parallel.data=2

    It checks that all nodes have the same versions, agree on the time, can reach the address of rank 0 and share
    storage; it checks devices, their free memory and disk space; and it measures the bandwidth of an all-reduce over
    all ranks.  `brt train` makes all of these checks but the all-reduce before it starts ranks (launch.preflight).
    The exit code is 18 if a check failed.
    """
    from brt_dist.config.loading import load
    from brt_dist.config.rules import check
    from launch.doctor.examine import all_reduce, line, quick, scratch_folder
    from launch.nodes.gang import Gang
    from launch.run.config_file import absolute
    from pipelines.cluster import ray_cluster
    from pipelines.tables import show, table

    files, overrides = split(settings)
    config = absolute(load([_ALONE, *files], overrides).config)
    check(config)
    with ray_cluster(ray_address or config.launch.ray_address), Gang(config) as gang:
        begin = time.monotonic()
        with scratch_folder(config.run.directory) as place:
            found = quick(gang, config, place)
            if not any(finding.check == "shared storage" and finding.status == "failed" for finding in found):
                found.append(all_reduce(gang, config, place))
        seconds = time.monotonic() - begin
        nodes = [asdict(node) for node in gang.nodes]
    failed = any(finding.status == "failed" for finding in found)
    if as_json:
        checks = [asdict(finding) for finding in found]
        click.echo(json.dumps({"ok": not failed, "seconds": seconds, "nodes": nodes, "checks": checks}))
    else:
        show(table(("", ""), [(finding.status, line(finding)) for finding in found]))
    return int(ExitCode.ENVIRONMENT) if failed else 0
