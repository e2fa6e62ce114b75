"""What users type, and the places that they name: each is used unchanged, or refused in one message."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from brt_dist.checkpoint.manifest import folder_name
from brt_dist.checkpoint.storage import FolderStorage
from brt_dist.checkpoint.verification import read_manifest
from brt_dist.config.loading import load
from brt_dist.data.dataset import Dataset
from brt_dist.errors import CheckpointError, ConfigError, DataError, PlatformError, system_error
from brt_dist.files import write_atomic
from launch.doctor.before_start import check_place
from launch.run.config_file import refuse_other_run, write_config
from launch.run.open_files import check_open_files
from launch.train import _plot
from pipelines import cluster
from pipelines.build import BuildSettings, build
from tests.checkpoints import make_checkpoint
from tests.datasets import make_dataset
from tests.unit.launch.conftest import Run

ROOT = Path(__file__).parents[3]


# ---- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a[/b]", "[bold]x", "$x_$", "$\\left$", "\u00fc \u65e5", ":smile:", "{x}", "%s", "a b"]
)
def test_names_are_plain_text(name: str, tmp_path: Path, run: Run) -> None:
    """No markup of the terminal, no formula of a plot, in any command that shows a path."""
    folder = make_dataset(tmp_path / name.replace("/", "\u2215"), ["one text", "another text"]).folder
    folder = folder.rename(folder.parent / ("o" + name.replace("/b", "\u2215b")))
    source = tmp_path / "s" / name.replace("/", "\u2215")
    shutil.copytree(folder.parent / "corpus", source)
    out = tmp_path / name  # a slash makes it a folder in a folder, with markup that is closed and never opened
    assert run("data", "build", source, "--out", out, "--tokenizer", "bytes", "--workers", 0)[0] == 0
    for command in (["verify", out], ["stats", out, "--plots", tmp_path / "plots"], ["inspect", out]):
        code, _, err = run("data", *command)
        assert code == 0
        assert command[0] != "verify" or f"{out}: 1 shards" in err
    tar = out / "shard-000000.tar"
    code, _, err = run("data", "index", tar, "--tokenizer", out / "tokenizer.json", "--out", tmp_path / f"i{name}")
    assert code == 0 and f"i{name}: 2 documents" in err
    code, _, err = run("data", "corpus", "cfg", "--out", tmp_path / f"c{name}", "--words", 10, "--held-out", 3)
    assert code == 0 and f"c{name}: 10 training words" in err


def test_a_title_is_no_formula(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "time": 1.0, "step": 1, "bits_per_token": 2.0}\n')
    config = load(["data: {dataset: d}\nrun: {directory: r, steps: 1}\n"], ["run.name=$x_$"]).config
    assert _plot(config, tmp_path) == tmp_path / "plots" / "loss.png"


def test_a_plot_that_fails_fails_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "time": 1.0, "step": 1, "bits_per_token": 2.0}\n')
    (tmp_path / "plots").write_text("a file in the way")
    config = load(["data: {dataset: d}\nrun: {directory: r, steps: 1}\n"]).config
    assert _plot(config, tmp_path) is None
    assert "warning: the loss curve was not drawn" in capsys.readouterr().err


def test_text_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    """In the locale C, and with bytes in a path that are not UTF-8; JSON stays ASCII."""
    folder = tmp_path / "\u00fc"
    make_dataset(folder, ["caf\u00e9 \u65e5"])
    odd = os.fsencode(tmp_path / "o") + b"\xff"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}

    def brt(*arguments: bytes | str | Path) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "launch.cli", *arguments]
        return subprocess.run(command, capture_output=True, check=False, cwd=ROOT, env=environment)

    shown = brt("data", "inspect", folder / "dataset", "--document", "0")
    assert shown.returncode == 0 and b"caf\\xe9" in shown.stdout
    shown = brt("data", "inspect", folder / "dataset", "--document", "0", "--json")
    assert json.loads(shown.stdout.decode("ascii"))["text"] == "caf\u00e9 \u65e5"
    built = brt("data", "build", folder / "corpus", "--out", odd, "--tokenizer", "bytes", "--workers", "0", "--json")
    assert built.returncode == 0 and json.loads(built.stdout.decode("ascii"))["documents"] == 1
    assert (Path(os.fsdecode(odd)) / "README.md").read_text("utf-8").startswith("<!--")
    refused = brt("config", "show", b"data.dataset=\xff")
    assert refused.returncode == 10 and b"Traceback" not in refused.stderr and b"not text" in refused.stderr


# ---- places -----------------------------------------------------------------------------------------------------


def test_places_that_cannot_be_written(tmp_path: Path, run: Run) -> None:
    """A file where a folder should be: that stops root too."""
    wall = tmp_path / "wall"
    wall.write_text("")
    corpus, dataset = tmp_path / "corpus", make_dataset(tmp_path, ["a text"]).folder
    out = wall / "x"
    for command in (
        ("data", "build", corpus, "--out", out, "--tokenizer", "bytes", "--workers", 0),
        ("data", "index", dataset / "shard-000000.tar", "--tokenizer", dataset / "tokenizer.json", "--out", out),
        ("data", "stats", dataset, "--plots", out),
        ("data", "corpus", "cfg", "--out", out, "--words", 10, "--held-out", 3),
        ("config", "schema", "--output", out),
    ):
        code, printed, err = run(*command)
        assert (code, printed) == (18, ""), command
        assert f"error: {out.parent}" in err and "file" in err.splitlines()[-1]


def test_an_error_of_the_system_is_told_with_its_place(tmp_path: Path) -> None:
    assert system_error(PermissionError(errno.EACCES, "x", "/a/b")) == "/a/b: permission denied"
    assert system_error(PermissionError(errno.EACCES, "x", b"/a/\xff")) == "/a/\udcff: permission denied"
    assert system_error(OSError(errno.ENOSPC, "x")) == "no space is left on the device"
    assert system_error(ConnectionResetError(errno.ECONNRESET, "x")) is None  # a bug, or to be told by who knows
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error:
        write_atomic(tmp_path / "folder", "text")
    assert system_error(error.value) == f"{tmp_path / 'folder'}: a folder, not a file"


def test_checkpoints_that_cannot_be_saved_stop_a_run_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "wall").write_text("")
    base = ["data: {dataset: d}\nrun: {directory: r, steps: 1}\n"]
    with pytest.raises(PlatformError, match=r"run\.checkpoints=.*wall is a file, not a folder"):
        check_place(load(base, [f"run.checkpoints={tmp_path}/wall/x"]).config)
    check_place(load(base, [f"run.checkpoints={tmp_path}/new/x"]).config)
    assert not (tmp_path / "new").exists()


def test_a_process_that_may_open_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(PlatformError, match="64 open files are allowed, but a run needs 1024"):
        check_open_files()


def test_no_ray_cluster_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 0.0)
    with pytest.raises(PlatformError, match=r"no Ray cluster answers at 127\.0\.0\.1:9 .*launch\.ray_address"):
        cluster._await("127.0.0.1:9")
    cluster._await("auto")


@pytest.mark.parametrize("folder", ["/tmp/" + "a" * 60, "/tmp/\u00fc"])
def test_sockets_of_ray_have_a_short_path(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    assert cluster.local_environment()["RAY_TMPDIR"] == "/tmp"
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert "RAY_TMPDIR" not in cluster.local_environment()


def test_a_source_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts that cannot be reached: tests/unit/test_unreachable.py."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PlatformError, match=r"s3://nobody/x: cannot be read: .*credentials; set its credentials"):
        build(BuildSettings(("s3://nobody/x",), tokenizer="bytes"), tmp_path / "out", workers=0)


def test_a_name_of_the_hub_as_a_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nobody/none: no such .*hub is hf://datasets/nobody/none"):
        build(BuildSettings(("nobody/none",), tokenizer="bytes"), tmp_path / "out", workers=0)


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_damaged_shard_is_not_trained_on(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, ["first text", "second text"]).folder
    with Dataset.open(folder) as data:
        place = data._place_of(1)
    shard = bytearray((folder / "shard-000000.tar").read_bytes())
    shard[place.begin + 2] ^= 4  # another letter: all ids stay in the vocabulary
    (folder / "shard-000000.tar").write_bytes(shard)
    with Dataset.open(folder) as data:
        data.tokens(0, 0, 4)
        with pytest.raises(DataError, match=r"shard-000000\.tar: document 1 .* is damaged: its sha256 differs"):
            data.tokens(1, 0, 1)
    with Dataset.open(folder, verify=False) as data:
        assert data.tokens(1, 0, 3).size == 3


def test_ids_beyond_the_vocabulary_without_digests(tmp_path: Path) -> None:
    """An older dataset has no hashes.npy."""
    folder = make_dataset(tmp_path, ["first text"]).folder
    with Dataset.open(folder) as data:
        place = data._place_of(0)
    shard = bytearray((folder / "shard-000000.tar").read_bytes())
    shard[place.begin + 1] = 1
    (folder / "shard-000000.tar").write_bytes(shard)
    with Dataset.open(folder, verify=False) as data, pytest.raises(DataError, match="is outside the vocabulary of 256"):
        data.tokens(0, 0, 1)


def test_checkpoints_are_taken_by_number_and_named_as_what_they_hold(tmp_path: Path, run: Run) -> None:
    storage = FolderStorage(tmp_path)
    for step in (3, 6, 99_999_999, 100_000_000):
        make_checkpoint(storage, step)
    shutil.copytree(tmp_path / folder_name(3), tmp_path / "step_3")
    shutil.copytree(tmp_path / folder_name(3), tmp_path / "step_\u00b2")
    assert storage.names() == [folder_name(step) for step in (3, 6, 99_999_999, 100_000_000)]
    code, out, err = run("checkpoint", "list", tmp_path)
    assert code == 0 and "step_3: ignored" in err and "step_\u00b2: ignored" in err and len(out.splitlines()) == 5
    (tmp_path / folder_name(6)).rename(tmp_path / folder_name(10))
    with pytest.raises(CheckpointError, match="holds the checkpoint of step 6; rename the folder to step_00000006"):
        read_manifest(storage, folder_name(10))


def test_a_dataset_that_moved_is_the_same(tmp_path: Path) -> None:
    """Its digest says so, wherever it is; other data is refused."""
    first = make_dataset(tmp_path / "a", ["a text of some length"]).folder
    base = f"data: {{dataset: {first}}}\nrun: {{directory: {tmp_path}/run, steps: 10}}\n"
    resolved = load([base])
    write_config(tmp_path / "run", resolved)
    make_checkpoint(FolderStorage(tmp_path / "run/checkpoints"), 1, dataset=Dataset.open(first).digest)
    moved = first.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(moved)
    for place in (moved, tmp_path / "link"):
        refuse_other_run(tmp_path / "run", load([base], [f"data.dataset={place}"]).config)
    other = make_dataset(tmp_path / "b", ["another text of some length"]).folder
    with pytest.raises(ConfigError, match=r"data\.dataset"):
        refuse_other_run(tmp_path / "run", load([base], [f"data.dataset={other}"]).config)


def test_a_link_that_leads_nowhere_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.txt").write_text("a text")
    (tmp_path / "c/b.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"c/b\.txt: cannot be read \(no such file or folder\)"):
        build(BuildSettings((str(tmp_path / "c"),), tokenizer="bytes"), tmp_path / "o", workers=0)
    report = build(BuildSettings((str(tmp_path / "c"),), tokenizer="bytes", on_bad="skip"), tmp_path / "o", workers=0)
    assert sum(report.dataset.sources[0].skipped.values()) == 1 and report.dataset.documents == 1


def test_a_checkout_that_git_cannot_list_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "c/good").mkdir(parents=True)
    (tmp_path / "c/good/a.txt").write_text("a text")
    subprocess.run(["git", "init", "-q", tmp_path / "c/good"], check=True)
    subprocess.run(["git", "-C", tmp_path / "c/good", "add", "."], check=True)
    (tmp_path / "c/broken/.git").mkdir(parents=True)
    settings = BuildSettings((f"git:{tmp_path / 'c'}",), tokenizer="bytes")
    with pytest.raises(DataError, match="c/broken: a checkout that git cannot list"):
        build(settings, tmp_path / "o", workers=0)
    settings = BuildSettings((f"git:{tmp_path / 'c'}",), tokenizer="bytes", on_bad="skip")
    assert build(settings, tmp_path / "o", workers=0).dataset.sources[0].skipped == {
        "a checkout that git cannot list": 1
    }


def test_weights_that_are_none(tmp_path: Path, run: Run) -> None:
    import numpy as np

    code, _, err = run("import", tmp_path / "x.npz", "--out", tmp_path / "o")
    assert (code, err) == (12, f"error: {tmp_path / 'x.npz'}: no such file\n")
    content = BytesIO()
    np.savez(content, a=np.ones(3))
    (tmp_path / "x.npz").write_bytes(content.getvalue())
    for about in ('{"config": {"a": 1}}', "[1]", '{"config": 1}', '{"model": {"width": "x"}}', "[" * 5000):
        (tmp_path / "x.json").write_text(about)
        code, _, err = run("import", tmp_path / "x.npz", "--out", tmp_path / "o")
        assert code == 12 and "x.json" in err
