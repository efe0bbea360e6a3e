"""Models answer: decoding, streaming, chat, and a client for OpenAI-compatible endpoints.

May import models, batching, tokens, data and the ground modules."""

from tunebook.common.generation.generation import (
    Answer,
    Ends,
    Samples,
    answers,
    cut,
    end_of_turn,
    ends,
    generate,
    room,
    stream,
    virtual_tokens,
)

__all__ = [
    "Answer",
    "Ends",
    "Samples",
    "answers",
    "cut",
    "end_of_turn",
    "ends",
    "generate",
    "room",
    "stream",
    "virtual_tokens",
]
