"""The application: routes, limits, authentication, metrics."""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException as AnyHTTPException

from brt_dist.errors import BrtError
from brt_dist.inference import TrainedModel
from brt_dist.serving.batcher import Batcher, Ended, Request
from brt_dist.serving.sessions import SessionBusyError, Sessions, SessionUnknownError
from brt_dist.serving.wire import ChatBody, CompletionBody, error

_RETRY_SECONDS = 1


@dataclass(frozen=True)
class Limits:
    """What clients may ask for.

    Attributes:
        streams: texts generated at a time.
        waiting: requests that may wait for one of them.
        prompt_tokens: of one prompt.
        new_tokens: to generate for one prompt.
        body_bytes: of one request.
        sessions: how many memories to keep.
        session_seconds: how long to keep an unused one.
    """

    streams: int = 8
    waiting: int = 64
    prompt_tokens: int = 1 << 20
    new_tokens: int = 4096
    body_bytes: int = 16 << 20
    sessions: int = 1000
    session_seconds: float = 3600.0


def create_app(model: TrainedModel, name: str, limits: Limits, token: str | None = None) -> FastAPI:
    """The application of one model.

    Args:
        model: to serve; it must have a tokenizer.
        name: of the model, for clients.
        limits: on requests.
        token: that clients must send as `Authorization: Bearer TOKEN`; None: no authentication.
    """
    service = _Service(model, name, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(title="brt", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.middleware("http")
    async def guard(request: HttpRequest, call: Callable[[HttpRequest], Any]) -> Response:
        if token is not None and request.url.path != "/health":
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), token.encode()):
                return JSONResponse(error("wrong or missing token", "authentication_error"), 401)
        size = request.headers.get("content-length", "0" if request.method == "GET" else "")
        if not size.isdigit():
            return JSONResponse(error("a Content-Length is needed", "invalid_request_error"), 411)
        if int(size) > limits.body_bytes:
            message = f"the request has {int(size):,} bytes; at most {limits.body_bytes:,} are read"
            return JSONResponse(error(message, "invalid_request_error"), 413)
        response: Response = await call(request)
        return response

    @app.exception_handler(RequestValidationError)
    async def refused(_: HttpRequest, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return JSONResponse(error(f"{place}: {first['msg']}", "invalid_request_error"), 400)

    @app.exception_handler(AnyHTTPException)
    async def stated(_: HttpRequest, problem: AnyHTTPException) -> JSONResponse:
        return JSONResponse(error(str(problem.detail), "invalid_request_error"), problem.status_code, problem.headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.batcher.is_alive
        return JSONResponse({"status": "ok" if alive else "failed", "model": name}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(service))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "brt", **service.facts}]}

    @app.post("/v1/completions")
    async def completions(body: CompletionBody) -> Response:
        return await service.complete(body)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody) -> Response:
        raise HTTPException(400, "this model has no chat template; use /v1/completions with the text to continue")

    return app


class _Service:
    """One model, its batcher and its sessions."""

    def __init__(self, model: TrainedModel, name: str, limits: Limits) -> None:
        self._model, self._name, self._limits = model, name, limits
        self.facts = {key: model.facts[key] for key in ("step",) if key in model.facts}
        window = model.config.window
        self.batcher = Batcher(model.decoder(limits.streams), model.tokenizer, window, limits.waiting)
        self.sessions = Sessions(limits.sessions, limits.session_seconds)
        self.metrics = _Metrics()

    async def complete(self, body: CompletionBody) -> Response:
        prompts = [self._encoded(text, body.session is not None and not body.session_new) for text in body.prompts]
        count = body.max_tokens or 16  # OpenAI's default
        if count > self._limits.new_tokens:
            raise HTTPException(400, f"max_tokens={count}: at most {self._limits.new_tokens:,} are generated")
        if body.session is not None and (len(prompts) > 1 or body.n > 1):
            raise HTTPException(400, "a session is one text: give one prompt, and n=1")
        saved = None
        if body.session is not None:
            try:
                saved = self.sessions.begin(body.session, must_exist=not body.session_new)
            except SessionBusyError as problem:
                raise HTTPException(409, str(problem)) from None
            except SessionUnknownError as problem:
                raise HTTPException(404, str(problem)) from None
            saved = None if body.session_new else saved
        channel: asyncio.Queue[tuple[int, str, Ended | None]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(index: int) -> Callable[[str, Ended | None], None]:
            def put(text: str, ended: Ended | None) -> None:
                with suppress(RuntimeError):  # the server is stopping, and nobody is listening any more
                    loop.call_soon_threadsafe(channel.put_nowait, (index, text, ended))

            return put

        requests = [
            Request(
                prompt,
                count,
                body.sampling(sample),
                body.stops,
                tell(number * body.n + sample),
                saved,
                body.session is not None,
            )
            for number, prompt in enumerate(prompts)
            for sample in range(body.n)
        ]
        for position, request in enumerate(requests):
            if not self.batcher.submit(request):
                for other in requests[:position]:
                    other.is_cancelled = True
                self._give_back(body.session, None, saved)
                headers = {"Retry-After": str(_RETRY_SECONDS)}
                raise HTTPException(
                    429, f"{self._limits.waiting} requests are already waiting; try again later", headers
                )
        pieces = self._pieces(body, requests, channel, saved)
        about = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        about["model"] = self._name
        if body.stream:
            return StreamingResponse(_events(about, pieces), media_type="text/event-stream")
        texts, endings = [""] * len(requests), [""] * len(requests)
        async for index, text, ended in pieces:
            texts[index] += text
            endings[index] = ended or endings[index]
        choices = [
            {"index": index, "text": text, "finish_reason": ended, "logprobs": None}
            for index, (text, ended) in enumerate(zip(texts, endings, strict=True))
        ]
        read, made = sum(map(len, prompts)), sum(len(request.generated) for request in requests)
        usage = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        return JSONResponse(about | {"choices": choices, "usage": usage})

    async def _pieces(
        self,
        body: CompletionBody,
        requests: list[Request],
        channel: "asyncio.Queue[tuple[int, str, Ended | None]]",
        saved: Any,
    ) -> AsyncIterator[tuple[int, str, Ended | None]]:
        """What the batcher reports, until all requests have ended; they also end if the client disconnects."""
        began, first = time.perf_counter(), True
        open_requests = len(requests)
        try:
            while open_requests:
                index, text, ended = await channel.get()
                if first and (text or ended):
                    self.metrics.first.observe(time.perf_counter() - began)
                    first = False
                open_requests -= ended is not None
                yield index, text, ended
        finally:
            for request in requests:
                request.is_cancelled = True
            self.metrics.requests.labels("cancelled" if open_requests else "done").inc()
            self.metrics.generated.inc(sum(len(request.generated) for request in requests))
            self._give_back(body.session, requests[0].state, saved)

    def _give_back(self, session: str | None, state: Any, before: Any) -> None:
        """End a session's request; one that did not end leaves the session as it was."""
        if session is not None:
            self.sessions.end(session, state if state is not None else before)

    def _encoded(self, prompt: str, may_be_empty: bool) -> list[int]:
        if not prompt and may_be_empty:
            return []
        try:
            ids = self._model.encode(prompt)
        except BrtError as problem:
            raise HTTPException(400, str(problem)) from None
        if len(ids) > self._limits.prompt_tokens:
            raise HTTPException(
                400, f"the prompt has {len(ids):,} tokens; at most {self._limits.prompt_tokens:,} are read"
            )
        return ids


async def _events(about: dict[str, Any], pieces: AsyncIterator[tuple[int, str, Ended | None]]) -> AsyncIterator[str]:
    """Server-sent events in OpenAI's form."""
    async for index, text, ended in pieces:
        choice = {"index": index, "text": text, "finish_reason": ended, "logprobs": None}
        yield f"data: {json.dumps(about | {'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"


class _Metrics:
    """For Prometheus."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("brt_requests", "Requests, by how they ended.", ["ended"], registry=self._registry)
        self.generated = Counter("brt_generated_tokens", "Tokens generated.", registry=self._registry)
        self.first = Histogram("brt_first_text_seconds", "Time from request to first text.", registry=self._registry)
        self._gauges = {
            name: Gauge(f"brt_{name}", text, registry=self._registry)
            for name, text in (
                ("active", "Texts being generated."),
                ("queued", "Requests that wait."),
                ("sessions", "Sessions held."),
                ("tokens", "Total tokens read and generated."),
            )
        }

    def text(self, service: _Service) -> str:
        self._gauges["active"].set(service.batcher.active)
        self._gauges["queued"].set(service.batcher.queued)
        self._gauges["sessions"].set(len(service.sessions))
        self._gauges["tokens"].set(service.batcher.tokens)
        return generate_latest(self._registry).decode()
