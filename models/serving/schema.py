"""The form of a request: the part of OpenAI's API that is served, and limits of every field.

What is not served is refused by name, and never left out silently: an answer that ignores half of a question is worse
than none.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_BODY = 1 << 20  # bytes
MAX_TEXT = 1 << 19  # characters
MOST_TEXTS = 256  # documents of a question

# Fields of OpenAI's API that are not served; with those that are, they alone are named: others may be anything.
_UNSERVED = frozenset(
    {
        "audio", "best_of", "echo", "frequency_penalty", "function_call", "functions", "logit_bias", "metadata",
        "modalities", "n", "parallel_tool_calls", "prediction", "presence_penalty", "reasoning_effort",
        "service_tier", "store", "suffix", "tool_choice", "tools", "top_k", "verbosity",
    }
)  # fmt: skip

Words = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(max_length=1000)


class StreamOptions(BaseModel):
    """Options of a stream: things that it tells beside its text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = False


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AsText(_Part):
    """An answer of any form."""

    type: Literal["text"]


class AsObject(_Part):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Part):
    """A JSON schema, which is always kept as if it was strict."""

    name: str = Field(default="", max_length=64)
    description: str = Field(default="", max_length=4096)
    described: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class AsJson(_Part):
    """An answer that is JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class AsRegex(_Part):
    """An answer that a regular expression describes as a whole; not of OpenAI's API."""

    type: Literal["regex"]
    pattern: str = Field(min_length=1, max_length=1 << 16)


class AsReport(_Part):
    """An answer around given figures, see `decoding.forms`; not of OpenAI's API."""

    type: Literal["report"]
    template: str = Field(min_length=1, max_length=1 << 16)
    given: dict[str, Annotated[str, Field(max_length=1000)]] = Field(default_factory=dict, max_length=256)


AnswerForm = Annotated[AsText | AsObject | AsJson | AsRegex | AsReport, Field(discriminator="type")]


class _Writes(_Request):
    max_tokens: int = Field(default=16, ge=1, le=2**20)
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: Literal[1] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=1000)  # is not read
    frequency_penalty: float = Field(default=0.0, ge=0, le=0)
    presence_penalty: float = Field(default=0.0, ge=0, le=0)
    response_format: AnswerForm | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, fields: Any) -> Any:
        """Takes a null as if the field was left out, as clients write it."""
        return {name: value for name, value in fields.items() if value is not None} if type(fields) is dict else fields

    @model_validator(mode="after")
    def _whole_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream alone: add that, or leave it out")
        return self

    @model_validator(mode="after")
    def _whole_form(self) -> Self:
        if self.stops and not isinstance(self.response_format, AsText | None):
            raise ValueError("a stop would cut an answer of a given form: leave one of them out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Completion(_Writes):
    """A text to go on with."""

    prompt: Words
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False
    best_of: Literal[1] = 1

    @model_validator(mode="after")
    def _whole_echo(self) -> Self:
        if self.echo and (self.stream or not isinstance(self.response_format, AsText | None)):
            raise ValueError("echo goes with neither stream nor a form: leave one of them out")
        return self

    @property
    def told(self) -> int | None:
        """Number of likeliest words that are told of each token; None: not even its own probability."""
        return self.logprobs


class TextPart(BaseModel):
    """A part of a turn; text alone is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: Words


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: Words | Annotated[list[TextPart], Field(max_length=256)]

    @property
    def text(self) -> str:
        """The words of the turn."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Chat(_Writes):
    """A conversation to answer."""

    messages: list[Message] = Field(min_length=1, max_length=63)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**20)
    max_tokens: int = Field(default=256, ge=1, le=2**20)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)

    @model_validator(mode="after")
    def _whole_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs alone: add that, or leave it out")
        return self

    @property
    def told(self) -> int | None:
        """Number of likeliest words that are told of each token; None: not even its own probability."""
        return self.top_logprobs if self.logprobs else None

    @property
    def longest(self) -> int:
        """Tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens


class Question(_Request):
    """Documents that a head reads."""

    input: Words | Annotated[list[Words], Field(min_length=1, max_length=MOST_TEXTS)]
    template: str = Field(default="{text}", min_length=1, max_length=16_384)  # of the study, with one name in braces

    @property
    def texts(self) -> tuple[str, ...]:
        """The documents."""
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)


KNOWN = _UNSERVED.union(
    *(
        form.model_fields.keys()
        for form in (
            Completion,
            Chat,
            Question,
            Message,
            TextPart,
            StreamOptions,
            AsJson,
            NamedSchema,
            AsRegex,
            AsReport,
        )
    ),
    {"schema"},
)
