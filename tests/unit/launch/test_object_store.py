"""A URL for checkpoints is tried before anything starts, on a server that speaks S3."""

import json
import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from brt_dist.config.loading import load
from brt_dist.errors import PlatformError
from launch.cli import main
from launch.doctor.before_start import check_place
from launch.doctor.object_store import problem_of
from tests.object_store import ObjectStore, object_store


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


def test_a_bucket_that_takes_objects_is_left_as_it_was(store: ObjectStore) -> None:
    import s3fs

    assert problem_of(f"{store.url}/runs/a", {}) is None
    assert s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False).find(store.url) == []


@pytest.mark.parametrize(
    "case, wanted",
    [
        ("bucket", ["there is no bucket nothere", "create it"]),
        ("address", ["cannot be reached; check the address", "AWS_ENDPOINT_URL=http://127.0.0.1:"]),
        ("no credentials", ["there are no credentials", "AWS_ACCESS_KEY_ID"]),
        ("refused", ["may not write to bucket", "InvalidAccessKeyId"]),
        ("protocol", ["nowhere://"]),
    ],
)
def test_what_is_wrong_with_a_place_is_told_in_one_message(
    store: ObjectStore, tmp_path: Path, dead_port: int, case: str, wanted: list[str]
) -> None:
    url, variables = f"{store.url}/runs/a", {"AWS_MAX_ATTEMPTS": "1"}
    if case == "bucket":
        url = "s3://nothere/runs/a"
    elif case == "address":
        variables["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{dead_port}"
    elif case == "no credentials":
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        variables |= {**dict.fromkeys(names, ""), "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    elif case == "protocol":
        url = "nowhere://bucket/runs"
    if case == "refused":
        with identities_checked(store):
            problem = problem_of(url, variables)
    else:
        problem = problem_of(url, variables)
    assert problem is not None and "\n" not in problem
    assert all(part in problem for part in wanted), problem


class identities_checked:
    """Meanwhile the server checks who a request is from; it knows no users."""

    def __init__(self, store: ObjectStore) -> None:
        self._url = f"{store.environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth"

    def __enter__(self) -> None:
        self._let(b"0")

    def __exit__(self, *error: object) -> None:
        self._let(b"inf")

    def _let(self, requests: bytes) -> None:
        told = urllib.request.Request(self._url, requests, {"Content-Type": "text/plain"}, method="POST")
        urllib.request.urlopen(told).read()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        problem = problem_of("s3://bucket/runs", variables, seconds=8.0)
    assert problem is not None and problem.startswith("the store has not answered within 8 s")


def test_brt_train_refuses_such_a_place_before_anything_starts(
    store: ObjectStore, tmp_path: Path, dead_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = [f"run.directory={run}", "run.steps=3000", f"data.dataset={tmp_path}", "run.device=cpu"]
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "run.checkpoints=s3://nothere/a", "--json"])
    said = capsys.readouterr()
    assert end.value.code == 18, said.err
    assert json.loads(said.out)["error"].startswith("run.checkpoints=s3://nothere/a: there is")
    assert not os.path.exists(run)
    check_place(load([], [*settings, f"run.checkpoints={store.url}/a"]).config)
    variables = f"launch.environment={{AWS_ENDPOINT_URL: http://127.0.0.1:{dead_port}}}"
    with pytest.raises(PlatformError, match="cannot be reached"):  # as the ranks would find
        check_place(load([], [*settings, f"run.checkpoints={store.url}/a", variables]).config)
