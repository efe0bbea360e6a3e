"""The chat as a page in the browser, on this machine alone (127.0.0.1), through Gradio."""

import importlib.util
import itertools
import os
import threading
from collections.abc import Iterator
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.generation.decoding import Decoding

NONE = "none"  # the name of no adapter


def check() -> None:
    """Raise UserError where no page can be made."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('--page needs gradio, which is not installed: pip install "gradio>=6,<7"')


def serve(adapted: Any, decoding: Decoding, system: str, port: int) -> None:
    """Show the page until Ctrl-C."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no telemetry
    build(adapted, decoding, system).launch(server_name="127.0.0.1", server_port=port, share=False, inbrowser=False)


def build(adapted: Any, decoding: Decoding, system: str) -> Any:
    """The page: one model for all visitors, one answer at a time, a conversation of its own for each visitor."""
    import gradio  # pyright: ignore[reportMissingImports]  an extra: rating

    from tunebook.common.generation import chat

    one_at_a_time = threading.Lock()

    def put_on(name: str) -> None:
        wanted = None if name == NONE else name
        if wanted != adapted.current:
            adapted.use(wanted)

    def head(name: str) -> str:
        with one_at_a_time:
            put_on(name)
            return chat.line(adapted, decoding)

    def answer(question: str, history: list[dict], system: str, name: str) -> Iterator[str]:
        """The answer so far, again and again."""
        if not question.strip():
            return
        text = ""
        with one_at_a_time:
            try:
                put_on(name)
                conversation = chat.Conversation(adapted.tokenizer, adapted.template, system.strip())
                conversation.turns = said(history)
                prompt, left_out = chat.prompt_within(adapted, conversation, decoding, question.strip())
                if left_out:
                    gradio.Info(f"The first {left_out} questions no longer fit and are left out.")
                for piece in chat.pieces(adapted, prompt, decoding):
                    if isinstance(piece, str):
                        text += piece
                        yield text
                    elif piece.note:
                        gradio.Info(piece.note)
            except UserError as error:
                raise gradio.Error(str(error)) from None

    with gradio.Blocks(title="tunebook chat", analytics_enabled=False) as page:
        status = gradio.Markdown(chat.line(adapted, decoding))
        with gradio.Row():
            system_text = gradio.Textbox(system, label="System text")
            names = [*adapted.folders, NONE]
            adapter = gradio.Dropdown(names, value=adapted.current or NONE, label="Adapter")
        gradio.ChatInterface(answer, additional_inputs=[system_text, adapter], analytics_enabled=False, api_name="chat")
        adapter.change(head, adapter, status)
    return page


def said(history: list[dict]) -> list[dict[str, str]]:
    """The questions that were answered, with their answers, as turns; the page gives texts as texts or in parts."""
    turns = []
    for turn in history:
        content = turn["content"]
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        turns.append({"role": turn["role"], "content": content})
    answered = [pair for pair in itertools.pairwise(turns) if [turn["role"] for turn in pair] == ["user", "assistant"]]
    return list(itertools.chain.from_iterable(answered))
