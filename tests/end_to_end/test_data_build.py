"""Building on Ray, with workers and drivers that are killed: the same bytes every time."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from brt_dist.data.tokenizers import train_bpe
from brt_dist.errors import DataError
from pipelines.build import BuildSettings, build
from pipelines.card import CARD_FILE, LENGTHS_FILE, README_FILE
from pipelines.cluster import running_ray
from pipelines.corpora import standard_library
from pipelines.verify import verify

pytestmark = pytest.mark.slow

SHARD_SIZE = 1 << 20
DRIVER = "from launch.commands.data import data; data()"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    """About 6 MB of the standard library; a shard of it takes about a second."""
    folder = tmp_path_factory.mktemp("data_build")
    (folder / "corpus").mkdir()
    size = 0
    for name, text in standard_library().items():
        if size < 6 * SHARD_SIZE and len(text.data) < SHARD_SIZE:
            (folder / "corpus" / name).write_bytes(text.data)
            size += len(text.data)
    sample = (folder / "corpus/asyncio.txt").read_text()
    (folder / "tokenizer.json").write_bytes(train_bpe([sample], 1000))
    return BuildSettings((str(folder / "corpus"),), str(folder / "tokenizer.json"), SHARD_SIZE)


@pytest.fixture(scope="module")
def reference(corpus: BuildSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a build by this process alone."""
    folder = tmp_path_factory.mktemp("reference")
    report = build(corpus, folder, workers=0)
    assert report.written_shards >= 5 and verify(folder)[1] == []
    return files_of(folder)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for the tests that can share it."""
    with running_ray(2):
        yield


def files_of(folder: Path) -> dict[str, str]:
    """All files but the card, which says how fast the build was."""
    card = (CARD_FILE, README_FILE, LENGTHS_FILE)
    files = [path for path in folder.iterdir() if path.name not in card]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def wait_for(what: str, found: object) -> object:
    """Call `found` until it returns something."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if result := found():  # type: ignore[operator]
            return result
        time.sleep(0.002)
    raise AssertionError(f"{what} did not come")


def test_a_process_can_have_one_ray_after_another() -> None:
    """Ray reads its token once in the life of a process, so the second Ray has the first one's."""
    program = (
        "from pipelines.cluster import running_ray\n"
        "for _ in range(2):\n"
        "    with running_ray(1):\n"
        "        import ray\n"
        "        print(ray.get(ray.remote(lambda: 7).remote()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["7", "7"], done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_writes_the_same_bytes(
    workers: int, corpus: BuildSettings, reference: dict[str, str], ray: None, tmp_path: Path
) -> None:
    report = build(corpus, tmp_path / "out", workers=workers)
    assert report.kept_shards == 0 and report.tokens_per_second > 0
    assert files_of(tmp_path / "out") == reference


def test_workers_that_are_killed_change_nothing(
    corpus: BuildSettings, reference: dict[str, str], ray: None, tmp_path: Path
) -> None:
    """Three times, the process that is in the middle of a shard is killed; the name of its file has its id."""
    killed: list[int] = []

    def writer() -> int | None:
        for path in (tmp_path / "out").glob(".shard-*.tar.tmp-*"):
            pid = int(path.name.split("tmp-")[1].split("-")[0])
            if pid not in killed and path.exists() and path.stat().st_size > 0:
                return pid
        return None

    def kill() -> None:
        for _ in range(3):
            pid = wait_for("a shard in the making", writer)
            assert isinstance(pid, int) and b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    report = build(corpus, tmp_path / "out")
    killer.join()
    assert len(killed) == 3 and report.kept_shards == 0
    assert files_of(tmp_path / "out") == reference  # and no file that the killed ones left


def test_a_bad_document_ends_the_build_with_its_place(corpus: BuildSettings, ray: None, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        (tmp_path / "corpus" / f"{number:02d}.txt").write_bytes(b"\xff" if number == 33 else b"some text " * 1000)
    settings = BuildSettings((str(tmp_path / "corpus"),), corpus.tokenizer, 20_000, lossy="allow")
    with pytest.raises(DataError, match=r"^corpus/33\.txt, byte 0: not UTF-8; --on-bad skip"):
        build(settings, tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists() and not list((tmp_path / "out").glob(".*tmp*"))


def test_a_driver_that_is_killed_goes_on_where_it_was(
    corpus: BuildSettings, reference: dict[str, str], tmp_path: Path
) -> None:
    """kill -9 of every process at once, as when the machine dies; of the driver alone; then to the end."""
    out = tmp_path / "out"
    arguments = [
        "build",
        *corpus.sources,
        "--out",
        str(out),
        "--tokenizer",
        corpus.tokenizer,
        "--workers",
        "2",
        "--json",
    ]
    command = [sys.executable, "-c", DRIVER, *arguments, "--shard-size", str(SHARD_SIZE)]
    for count, everything in ((1, True), (2, False)):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("a finished shard", lambda count=count: len([*out.glob("*.index.json")]) >= count)
        below = psutil.Process(driver.pid).children(recursive=True) if everything else []
        driver.kill()
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        driver.wait()
        assert not (out / "dataset.json").exists()

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)  # and nothing else, although Ray was started
    assert report["kept_shards"] >= 1 and report["written_shards"] >= 1
    assert files_of(out) == reference
