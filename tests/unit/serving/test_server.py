"""The real server on loopback, with real clients: what they get, and that none gets another's text."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn

from brt_dist.config.schema import ModelConfig
from brt_dist.data.tokenizers import ByteTokenizer
from brt_dist.generation.choose import Sampling
from brt_dist.inference import TrainedModel
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.parallel.layout import single_process
from brt_dist.serving.app import Limits, create_app

WINDOW = 8
LIMITS = Limits(streams=3, waiting=40, prompt_tokens=300, new_tokens=200_000, body_bytes=20_000, sessions=3)


@pytest.fixture(scope="module")
def model() -> Iterator[TrainedModel]:
    sizes = {"layers": 2, "width": 16, "heads": 2, "head_dim": 8, "window": WINDOW, "vocab_size": 256}
    mixers = {"window": {}, "recurrent": {"layers": [1], "states": 4}}
    config = ModelConfig.model_validate({**sizes, "mixers": mixers, "ffns": {"relu": {"width": 32}}})
    from contextlib import ExitStack

    with single_process():
        network = BlockRecurrentModel(config, seed=5).eval()
        yield TrainedModel(network, ByteTokenizer(), "a model", {"step": 7}, ExitStack())


@contextmanager
def serving(model: TrainedModel, limits: Limits = LIMITS, token: str | None = None) -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(create_app(model, "tiny", limits, token), log_level="critical"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port(model: TrainedModel) -> Iterator[int]:
    with serving(model) as found:
        yield found


def call(port: int, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(
        "GET" if body is None else "POST", path, data, {"Content-Type": "application/json", **(headers or {})}
    )
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if text.startswith("{") else text


def complete(port: int, **body: Any) -> dict[str, Any]:
    status, answer = call(port, "/v1/completions", body)
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def alone(model: TrainedModel, prompt: str, tokens: int, seed: int = 0) -> str:
    return model.generate(prompt, tokens, sampling=Sampling(seed=seed)).text


def test_a_completion_is_what_generate_gives(model: TrainedModel, port: int) -> None:
    answer = complete(port, prompt="One text", max_tokens=30, seed=2)
    assert texts(answer) == [alone(model, "One text", 30, 2)]
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 30, "total_tokens": 38}
    assert answer["choices"][0]["finish_reason"] == "length" and answer["model"] == "tiny"
    several = complete(port, prompt=["One text", "x" * 50], n=2, max_tokens=9, seed=2)
    assert texts(several) == [alone(model, p, 9, seed) for p in ("One text", "x" * 50) for seed in (2, 3)]
    stop = alone(model, "One text", 30, 2)[4:6]
    stopped = complete(port, prompt="One text", max_tokens=30, seed=2, stop=stop)
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert texts(stopped) == [alone(model, "One text", 30, 2).partition(stop)[0]]


def test_streamed_it_is_the_same(model: TrainedModel, port: int) -> None:
    status, text = call(port, "/v1/completions", {"prompt": "One text", "max_tokens": 30, "seed": 2, "stream": True})
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert status == 200 and lines[-1] == "[DONE]" and len(lines) > 10
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "".join(choice["text"] for choice in choices) == alone(model, "One text", 30, 2)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]


def test_many_clients_at_once_get_their_own(model: TrainedModel, port: int) -> None:
    """More than there are streams, with prompts of many lengths, each against the same text generated alone."""

    def one(number: int) -> None:
        prompt = f"{number} " * (number * 5 % 37 + 1)
        assert texts(complete(port, prompt=prompt, max_tokens=5 + number, seed=number)) == [
            alone_texts[number, prompt]
        ], number

    numbers = range(16)
    prompts = {number: f"{number} " * (number * 5 % 37 + 1) for number in numbers}
    alone_texts = {(n, prompt): alone(model, prompt, 5 + n, n) for n, prompt in prompts.items()}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, numbers))


def test_a_session_goes_on_where_it_was(model: TrainedModel, port: int) -> None:
    first = complete(port, prompt="One text", max_tokens=11, seed=4, session="s", session_new=True)
    other = complete(port, prompt="Another", max_tokens=5, seed=9, session="t", session_new=True)
    second = complete(port, prompt="", max_tokens=19, seed=4, session="s")
    whole = model.encode("One text")
    decoder = model.decoder()
    from brt_dist.generation.generate import generate

    (found,) = generate(decoder, [whole], 30, model.tokenizer, Sampling(seed=4))
    joined = ByteTokenizer().decode(found.tokens)
    assert joined.startswith(texts(first)[0].rstrip("\ufffd")) and joined.endswith(texts(second)[0].lstrip("\ufffd"))
    assert texts(other) == [alone(model, "Another", 5, 9)]
    third = complete(port, prompt=" More.", max_tokens=4, seed=4, session="s")
    assert texts(third) != texts(complete(port, prompt=" More.", max_tokens=4, seed=4, session="s", session_new=True))


def test_a_session_is_refused_where_it_cannot_be_continued(port: int) -> None:
    for body, status, said in (
        ({"prompt": "a", "session": "never"}, 404, "never started"),
        ({"prompt": ["a", "b"], "session": "x", "session_new": True}, 400, "one text"),
        ({"prompt": "a", "n": 2, "session": "x", "session_new": True}, 400, "one text"),
    ):
        found, answer = call(port, "/v1/completions", body)
        assert found == status and said in answer["error"]["message"]
    complete(port, prompt="a", session="x", session_new=True)  # a refused request left nothing behind


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "required"),
        (b"{", 400, "JSON"),
        (b"[1]", 400, ""),
        (b"\xff\xfe", 400, ""),
        (b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400, ""),
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "empty"),
        ({"prompt": 5}, 400, "prompt"),
        ({"prompt": "x" * 301}, 400, "301 tokens; at most 300"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "x", "max_tokens": 10**9}, 400, "at most 200,000"),
        ({"prompt": "x", "temperature": "hot"}, 400, "temperature"),
        ({"prompt": "x", "top_p": 2}, 400, "top_p"),
        ({"prompt": ["x"] * 99}, 400, "prompt"),
        ({"prompt": "x" * 30_000}, 413, "at most 20,000"),
    ],
)
def test_bad_requests_are_told(port: int, body: Any, status: int, said: str) -> None:
    found, answer = call(port, "/v1/completions", body)
    assert found == status and said in answer["error"]["message"]
    assert call(port, "/health")[0] == 200


def test_other_paths(port: int) -> None:
    assert call(port, "/health") == (200, {"status": "ok", "model": "tiny"})
    assert call(port, "/v1/models")[1]["data"][0] == {"id": "tiny", "object": "model", "owned_by": "brt", "step": 7}
    status, answer = call(port, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert status == 400 and "no chat template" in answer["error"]["message"]
    _, page = call(port, "/metrics")
    for path in ("/nothing", "/v1/completions"):
        status, answer = call(port, path)
        assert status in (404, 405) and answer["error"]["message"]
    assert "brt_generated_tokens_total" in page and "brt_active 0.0" in page


def test_a_client_that_goes_away_frees_its_stream(model: TrainedModel) -> None:
    limits = Limits(streams=1, waiting=2, new_tokens=10**9)
    with serving(model, limits) as port:
        body = json.dumps({"prompt": "x", "max_tokens": 10**8, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
            client.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            assert client.recv(10)
        assert texts(complete(port, prompt="One text", max_tokens=5)) == [alone(model, "One text", 5)]
        assert 'brt_requests_total{ended="cancelled"} 1.0' in call(port, "/metrics")[1]


def test_too_many_are_refused_and_the_rest_served(model: TrainedModel) -> None:
    with serving(model, Limits(streams=1, waiting=1)) as port, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: call(port, "/v1/completions", {"prompt": "x", "max_tokens": 300}), range(8)))
    statuses = [status for status, _ in found]
    assert set(statuses) == {200, 429} and all("try again" in str(a) for status, a in found if status == 429)


def test_the_token(model: TrainedModel) -> None:
    with serving(model, token="secret") as port:
        assert call(port, "/health")[0] == 200
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret2"}):
            assert call(port, "/v1/completions", {"prompt": "x"}, given)[0] == 401
            assert call(port, "/metrics", headers=given)[0] == 401
        assert call(port, "/v1/completions", {"prompt": "x"}, {"Authorization": "Bearer secret"})[0] == 200


def begin_stream(port: int, **body: Any) -> socket.socket:
    """A client that has asked for a stream and read its first bytes."""
    data = json.dumps({"stream": True, **body}).encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
    client.sendall(f"{head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    assert client.recv(10)
    return client


def test_a_session_that_is_cut_off_is_as_it_was_before(model: TrainedModel) -> None:
    with serving(model, Limits(streams=2, new_tokens=10**9)) as port:
        complete(port, prompt="One text", max_tokens=11, seed=4, session="s", session_new=True)
        known = texts(complete(port, prompt=" More.", max_tokens=9, seed=4, session="s"))
        complete(port, prompt="One text", max_tokens=11, seed=4, session="s", session_new=True)
        with begin_stream(port, prompt=" More.", max_tokens=10**8, seed=4, session="s"):
            status, answer = call(port, "/v1/completions", {"prompt": "x", "session": "s"})
            assert status == 409 and "in progress" in answer["error"]["message"]
        deadline = time.monotonic() + 60
        while 'brt_requests_total{ended="cancelled"} 1.0' not in call(port, "/metrics")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert texts(complete(port, prompt=" More.", max_tokens=9, seed=4, session="s")) == known


def test_sessions_at_once_see_nothing_of_each_other(model: TrainedModel) -> None:
    """Each client's text, in four requests beside those of others, against the same requests one after the other."""
    parts = ["The story of {n}: ", "it was {n} again. ", "", "And {n}."]

    def told(port: int, number: int) -> list[str]:
        return [
            texts(
                complete(
                    port,
                    prompt=part.format(n=str(number) * (number + 1)),
                    max_tokens=7 + number,
                    seed=number,
                    session=f"client {number}",
                    session_new=place == 0,
                )
            )[0]
            for place, part in enumerate(parts)
        ]

    limits = Limits(streams=3, sessions=9)
    with serving(model, limits) as port:
        alone_first = [told(port, number) for number in range(8)]
    with serving(model, limits) as port, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: told(port, number), range(8))) == alone_first
    assert len({story[0] for story in alone_first}) == 8


def test_forgotten_sessions_are_unknown(model: TrainedModel) -> None:
    with serving(model, Limits(sessions=2, session_seconds=0.5)) as port:
        for name in ("a", "b", "c"):
            complete(port, prompt="x", max_tokens=1, session=name, session_new=True)
        status, answer = call(port, "/v1/completions", {"prompt": "x", "session": "a"})
        assert status == 404 and "session_new=true" in answer["error"]["message"]  # two are kept
        time.sleep(0.6)
        status, answer = call(port, "/v1/completions", {"prompt": "x", "session": "c"})
        assert status == 404 and "0.5 s" in answer["error"]["message"]


def test_slow_clients_hold_up_nobody(model: TrainedModel) -> None:
    """One that sends its body late, one that never does, and one that does not read what it is sent."""
    with (
        serving(model, Limits(streams=2, new_tokens=10**6)) as port,
        socket.create_connection(("127.0.0.1", port)) as never,
    ):
        body = json.dumps({"prompt": "One text", "max_tokens": 5}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        never.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        with socket.create_connection(("127.0.0.1", port), timeout=60) as late:
            late.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:7])
            with begin_stream(port, prompt="x", max_tokens=10**6):
                for seed in range(3):
                    assert texts(complete(port, prompt="One text", max_tokens=5, seed=seed)) == [
                        alone(model, "One text", 5, seed)
                    ]
            late.sendall(body[7:])
            answer = b""
            while piece := late.recv(10_000):
                answer += piece
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == alone(model, "One text", 5)
