"""Slurm: one sbatch script that starts a Ray cluster inside the allocation and runs `brt train` on it."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from brt_dist.config.launch_rules import gpus_per_node
from brt_dist.config.section import Section
from brt_dist.errors import PlatformError
from brt_dist.files import write_atomic
from brt_dist.run_directory import RunDirectory
from launch.backends.base import Backend
from launch.backends.commands import call
from launch.backends.job import Job, chunks, private_folder
from launch.run.python import module_command
from launch.run.submission import State, Submission

if TYPE_CHECKING:
    from brt_dist.config.schema import Config

_END = "END_OF_BRT_JOB"
_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "REQUEUE_FED", "SPECIAL_EXIT")
_RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING")
_WORD = re.compile(r"[\w.-]+$")
_SIZE = re.compile(r"\d+[KMGT]?$")
# Options of sbatch that the launcher sets itself.
_TAKEN: tuple[str, ...] = (
    "--nodes",
    "-N",
    "--ntasks",
    "-n",
    "--ntasks-per-node",
    "--output",
    "-o",
    "--error",
    "--signal",
    "--requeue",
)
_TAKEN += ("--mail-user", "--mail-type", "--gpus-per-node", "--gres")
_TAKEN += ("--no-requeue", "--array", "-a", "--job-name", "-J", "--parsable", "--wrap", "--chdir", "-D", "--export")


class SlurmConfig(Section):
    """A Slurm allocation, in which a Ray cluster is started."""

    partition: str | None = Field(None, description="sbatch option of the same name")
    account: str | None = Field(None, description="sbatch option of the same name")
    qos: str | None = Field(None, description="sbatch option of the same name")
    constraint: str | None = Field(None, description="sbatch option of the same name")
    cpus_per_node: PositiveInt | None = Field(
        None, description="CPUs requested per node; unset: the whole node (--exclusive)"
    )
    memory: str | None = Field(None, description="memory requested per node, for example 200G; unset: Slurm's default")
    options: tuple[str, ...] = Field((), description="more options for sbatch, for example [--reservation=june]")
    gpus: Literal["gpus-per-node", "gres", "none"] = Field(
        "gpus-per-node", description="sbatch option that requests GPUs; none: the partition provides them"
    )
    gpu_type: str | None = Field(None, description="type of GPU to request, as the site names it, for example h100")
    mail: str | None = Field(None, description="address that Slurm writes to when the job ends, fails or is requeued")
    setup: tuple[str, ...] = Field(
        (),
        description="shell lines that run first in the job, for example [module load x]; if one fails, the job ends",
    )
    python: str | None = Field(
        None, min_length=1, description="Python interpreter on the nodes or in the container; unset: this one"
    )
    container: tuple[str, ...] = Field(
        (), description="prefix of each command on a node, for example [apptainer, exec, --nv, image.sif]"
    )
    interface: str | None = Field(
        None, description="network interface between the nodes; unset: the one that the host name resolves to"
    )
    listen: Literal["address", "all"] = Field(
        "address", description="what Ray listens on: the node's address (needs a C compiler there), or all interfaces"
    )
    notice_seconds: PositiveInt = Field(
        300, description="seconds before the time limit when the run saves and is requeued"
    )
    at_once: PositiveInt | None = Field(
        None,
        description="how many runs of `brt sweep --submit` Slurm runs at a time; unset: as many as it has nodes for",
    )
    requeue: bool = Field(True, description="requeue the job after preemption or at its time limit")


class SlurmBackend(Backend):
    """The job is Slurm's job number.  It is submitted by running the rendered shell script, which calls sbatch."""

    section = SlurmConfig
    requests_gpus = True
    shares_folders = True
    hides_config = True

    @classmethod
    def broken_rules(cls, config: "Config") -> Iterator[str]:
        slurm, limit = config.launch.of(SlurmConfig), config.launch.time_limit_seconds
        for option in slurm.options:
            name = option.split("=", 1)[0]
            if not name.startswith("-"):
                yield f"launch.slurm.options: {option!r} is not an option; an example of one is --reservation=june"
            elif name in _TAKEN:
                yield f"launch.slurm.options: {name} is set by brt submit itself; remove it"
        if limit is not None and slurm.notice_seconds >= limit:
            yield (
                f"launch.slurm.notice_seconds={slurm.notice_seconds} is not less than launch.time_limit, {limit} s: "
                f"the run would be stopped at once; nearest: launch.slurm.notice_seconds={max(limit // 4, 1)}"
            )
        if slurm.memory is not None and not _SIZE.match(slurm.memory):
            yield f"launch.slurm.memory={slurm.memory!r} must be a number with an optional K, M, G or T, such as 200G"
        if slurm.gpu_type is not None and not _WORD.match(slurm.gpu_type):
            yield f"launch.slurm.gpu_type={slurm.gpu_type!r} must be one word, such as h100"
        if slurm.mail is not None and not re.match(r"[^\s,@]+@[^\s,@]+$", slurm.mail):
            yield f"launch.slurm.mail={slurm.mail!r} is not an address; example: me@example.org"
        if slurm.interface is not None and not re.match(r"[\w.@:-]+$", slurm.interface):
            yield f"launch.slurm.interface={shlex.quote(slurm.interface)} is not the name of a network interface"

    def render(self, job: Job) -> str:
        return f"{shlex.join(_sbatch(job))} <<'{_END}'\n{_script(job)}{_END}\n"

    def submit(self, job: Job) -> Submission:
        private_folder(job.folder)
        return job.submitted(self._submitted(self.render(job)))

    def submit_many(self, jobs: Sequence[Job]) -> Iterator[Submission]:
        """One job array with a task for each run; tasks are requeued, stopped and queried like separate jobs."""
        if len(jobs) < 2:
            yield from super().submit_many(jobs)
            return
        for job in jobs:
            private_folder(job.folder)
            write_atomic(job.folder / _TASK, _script(job))
        number = self._submitted(render_array(jobs))
        yield from (job.submitted(f"{number}_{task}") for task, job in enumerate(jobs))

    def state(self, submission: Submission) -> State:
        try:
            found = call(["squeue", "--noheader", f"--jobs={submission.job}", "--format=%T"], what="ask Slurm").strip()
        except PlatformError as error:
            if "nvalid job id" in str(error):  # it ended several minutes ago
                return "ended"
            raise
        state = found.splitlines()[0].strip() if found else ""
        return "queued" if state in _QUEUED else "running" if state in _RUNNING else "ended"

    def _submitted(self, script: str) -> str:
        """The job number that Slurm assigns to what `script` submits."""
        number = call(["bash"], text=script, what="submit to Slurm").strip().partition(";")[0]
        if not number.isdigit():
            raise PlatformError(f"cannot submit to Slurm: sbatch answered {number!r} instead of a job number")
        return number

    def log(self, submission: Submission, run: Path) -> Iterator[str]:
        return chunks(RunDirectory(run).submission_log(submission.number))

    def stop(self, submission: Submission, run: Path) -> None:
        state = self.state(submission)
        if state == "ended":
            return
        RunDirectory(run).stop_request.touch()
        if state == "queued":
            call(["scancel", submission.job], what="cancel the Slurm job")
        else:
            # Only to the script, which passes it on, waits for the checkpoint and releases the nodes.
            call(["scancel", "--batch", "--signal=TERM", submission.job], what="stop the Slurm job")


def render_array(jobs: Sequence[Job]) -> str:
    """The script that submits the array of `jobs`; each task runs the script in the folder of its job."""
    limit = jobs[0].config.launch.of(SlurmConfig).at_once
    tasks = f"0-{len(jobs) - 1}" + (f"%{limit}" if limit is not None else "")
    name = f"brt {jobs[0].run.parent.name}"
    command = [*_sbatch(jobs[0], {"job-name": name, "output": "/dev/null"}), f"--array={tasks}"]
    folders = "".join(f"  {shlex.quote(str(job.folder))}\n" for job in jobs)
    return f"{shlex.join(command)} <<'{_END}'\n{_ARRAY.format(folders=folders, task=_TASK)}{_END}\n"


def _sbatch(job: Job, other: Mapping[str, str] | None = None) -> list[str]:
    """The sbatch command.  Options are words of a command line, so no value can end a line or start another.

    `other`: options that replace the job's own.
    """
    launch, slurm = job.config.launch, job.config.launch.of(SlurmConfig)
    options = {
        "job-name": f"brt {job.config.run.name}",
        "nodes": str(launch.nodes),
        "ntasks-per-node": "1",
        "output": str(RunDirectory(job.run).submission_log(job.number)).replace("%", "%%"),
        "open-mode": "append",
        "signal": f"B:TERM@{slurm.notice_seconds}",
        "time": _slurm_time(launch.time_limit_seconds),
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "mem": slurm.memory,
        "cpus-per-task": str(slurm.cpus_per_node) if slurm.cpus_per_node else None,
        **(other or {}),
    }
    flags = ["--requeue" if slurm.requeue else "--no-requeue"]
    flags += _gpus(job)
    flags += [f"--mail-user={slurm.mail}", "--mail-type=END,FAIL,REQUEUE"] if slurm.mail else []
    flags += [] if slurm.cpus_per_node else ["--exclusive"]
    return [
        "sbatch",
        "--parsable",
        *(f"--{name}={value}" for name, value in options.items() if value is not None),
        *flags,
        *slurm.options,
    ]


def _gpus(job: Job) -> list[str]:
    """The option that requests GPUs, in the form that the site uses."""
    slurm, gpus = job.config.launch.of(SlurmConfig), gpus_per_node(job.config)
    if not gpus or slurm.gpus == "none":
        return []
    amount = f"{slurm.gpu_type}:{gpus}" if slurm.gpu_type else str(gpus)
    return [f"--gres=gpu:{amount}" if slurm.gpus == "gres" else f"--gpus-per-node={amount}"]


def _slurm_time(seconds: int | None) -> str | None:
    """A time limit in a form that Slurm cannot misread: it would take H:MM for minutes and seconds."""
    if seconds is None:
        return None
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}"


def _script(job: Job) -> str:
    launch, slurm = job.config.launch, job.config.launch.of(SlurmConfig)
    python = [*slurm.container, slurm.python or sys.executable]
    interface = ["--interface", slurm.interface] if slurm.interface else []
    node = [
        *module_command("launch.nodes.ray_node", str(job.folder), python=python),
        "--gpus",
        str(gpus_per_node(job.config)),
        *interface,
    ]
    node += ["--listen", slurm.listen, "--patience", f"{launch.start_seconds:g}"]
    train = module_command("launch.cli", "train", str(RunDirectory(job.run).config), python=python)
    return _TEMPLATE.format(
        setup="".join(f"{line}\n" for line in slurm.setup),
        directory=shlex.quote(os.getcwd()),
        folder=shlex.quote(str(job.folder)),
        stopped=shlex.quote(str(RunDirectory(job.run).stop_request)),
        node=shlex.join(node),
        train=shlex.join(train),
        interface="".join(
            f"export {name}={shlex.quote(slurm.interface or '')}\n" for name in _OF_INTERFACE if slurm.interface
        ),
        requeue="1" if slurm.requeue else "0",
        patience=f"{launch.start_seconds:.0f}",
    )


_OF_INTERFACE = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

_TASK = "job.sh"  # the script of an array task, in the folder of its submission
_ARRAY = """\
#!/bin/bash
# A task for each run of a sweep.  Written by brt sweep.
folders=(
{folders})
folder=${{folders[$SLURM_ARRAY_TASK_ID]}}
exec bash "$folder/{task}" >>"$folder/log" 2>&1
"""

# 17 is ExitCode.PREEMPTED, 16 LOST_NODE, 18 ENVIRONMENT.
_TEMPLATE = """\
#!/bin/bash
# Starts a Ray cluster on the nodes of this allocation and trains on it.  Written by brt submit.
set -eo pipefail
trap 'echo "failed: $BASH_COMMAND (line $LINENO of the job script)" >&2; exit 18' ERR
umask 077
{setup}set -u  # from here on: the lines above may read variables that are not set, as conda and modules do
cd {directory}
folder={folder}
stopped={stopped}
requeue={requeue}
mkdir -p "$folder"
rm -f "$folder/head" "$folder/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token"
{interface}
# Before its time limit, and when it is preempted, Slurm sends SIGTERM to this script alone.
asked=0 train=0
trap 'asked=1; if [ "$train" != 0 ]; then kill -TERM "$train" 2>/dev/null || true; fi' TERM

# One task per node; each is a node of the cluster, and the first one is its head.  It gets all CPUs of the job there:
# srun does not take their number from sbatch.
srun --ntasks-per-node=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-${{SLURM_CPUS_ON_NODE:-1}}}}" --kill-on-bad-exit=1 \\
  bash -c 'exec "$@" --node "$SLURM_PROCID"' - \\
  {node} &
cluster=$!
waited=0
while [ ! -s "$folder/head" ]; do
  [ "$asked" = 0 ] && kill -0 "$cluster" 2>/dev/null && [ "$waited" -lt {patience} ] || break
  waited=$((waited + 1))
  sleep 1
done
code=18
if [ "$asked" = 1 ]; then
  code=17
elif [ -s "$folder/head" ]; then
  {train} --ray-address "$(cat "$folder/head")" &
  train=$!
  if [ "$asked" = 1 ]; then kill -TERM "$train" || true; fi
  code=0
  wait "$train" || code=$?
  # A trap ends a wait, so wait again until the process is gone; 127: the wait before had the exit code.
  while kill -0 "$train" 2>/dev/null; do
    code=0
    wait "$train" || code=$?
  done
  if [ "$code" -gt 128 ]; then
    again=0
    wait "$train" || again=$?
    [ "$again" = 127 ] || code=$again
  fi
fi
kill -TERM "$cluster" 2>/dev/null || true
wait "$cluster" || true
rm -f "$folder/token"
if [ "$code" = 17 ] && [ "$requeue" = 1 ] && [ ! -e "$stopped" ]; then
  echo "stopped by Slurm: saved and requeued"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60  # Slurm ends this script
fi
exit "$code"
"""
