"""Models answer: decoding, streaming, chat, and a client for OpenAI-compatible endpoints.

May import models, batching, tokens, data and the ground modules."""

from tunebook.common.generation.generation import (
    Answer,
    Samples,
    StopConditions,
    answers,
    cut,
    end_of_turn,
    generate,
    remaining_tokens,
    stop_conditions,
    stream,
    virtual_tokens,
)

__all__ = [
    "Answer",
    "Samples",
    "StopConditions",
    "answers",
    "cut",
    "end_of_turn",
    "generate",
    "remaining_tokens",
    "stop_conditions",
    "stream",
    "virtual_tokens",
]
