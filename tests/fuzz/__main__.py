"""`python -m tests.fuzz [TARGET ...] [--seconds N]`: fuzzes readers of files, led by the lines that they reach.

Each target runs in a separate process.  An input that raises anything but an error of ours, takes longer than two
seconds or needs more than 200 MB beyond the start is left in build/fuzz/TARGET, and the exit code is 1.  Needs atheris
(`make fuzz`).
"""

import argparse
import subprocess
import sys
from pathlib import Path

from brt_dist.errors import BrtError
from tests.fuzz.targets import TARGETS

OUT = Path("build/fuzz")
MEMORY = 1200  # MB of the process; libraries take up to a thousand
LONGEST = 1 << 16  # bytes of an input


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is given")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    given = parser.parse_args()
    failed = []
    for name in given.targets or TARGETS:
        if name not in TARGETS:
            parser.error(f"no target {name!r}; there are {', '.join(TARGETS)}")
        corpus = OUT / name / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(TARGETS[name].seeds()):
            (corpus / f"seed{number}").write_bytes(seed)
        command = [sys.executable, "-W", "ignore", "-c", f"from tests.fuzz.__main__ import fuzz; fuzz({name!r})"]
        options = [f"-max_total_time={given.seconds}", "-timeout=2", f"-rss_limit_mb={MEMORY}", f"-max_len={LONGEST}"]
        log = OUT / name / "log"
        with open(log, "w") as file:
            places = [f"-artifact_prefix={OUT / name}/", str(corpus)]
            code = subprocess.run([*command, *options, *places], stdout=file, stderr=file, check=False).returncode
        lines = log.read_text(errors="replace").splitlines()
        print(f"{name}: {lines[-1] if lines else 'nothing'}" if not code else f"{name}: FAILED, see {log}", flush=True)
        failed += [name] if code else []
    return 1 if failed else 0


def fuzz(name: str) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["brt_dist", "pipelines", "launch", "yaml", "tarfile"]):
        for seed in TARGETS[name].seeds():
            read(name, seed)  # imports what the reader needs

    def one(data: bytes) -> None:
        read(name, data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


def read(name: str, data: bytes) -> None:
    try:
        TARGETS[name].read(data)
    except BrtError as error:
        if not str(error).strip():
            raise RuntimeError("an error without a message") from error


if __name__ == "__main__":
    sys.exit(main())
