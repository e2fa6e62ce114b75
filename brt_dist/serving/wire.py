"""What clients send and get: OpenAI's completions, with a few more fields."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from brt_dist.generation.choose import Sampling

MOST_SAMPLES = 16
MOST_STOPS = 16


class Sampled(BaseModel):
    """Fields that completions and chat have in common."""

    model_config = ConfigDict(extra="ignore")  # clients send many fields that have no meaning here

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    seed: int = 0
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 1
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stream: bool = False
    session: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    session_new: bool = False

    def sampling(self, sample: int) -> Sampling:
        """Of one of the `n` samples."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed + sample,
        )

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class CompletionBody(Sampled):
    """POST /v1/completions.

    Attributes:
        prompt: one text, or several.
        session: name of a text that continues from request to request: its memory is kept.
        session_new: begin that text anew; otherwise it must exist.
    """

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MOST_SAMPLES)]

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class Message(BaseModel):
    role: str
    content: str


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]


def error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "code": code}}
