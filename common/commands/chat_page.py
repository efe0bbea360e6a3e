"""The chat as a page in the browser, on this machine alone (127.0.0.1), through Gradio."""

import importlib.util
import os
import threading
from collections.abc import Iterator
from typing import Any

from common.decoding import Decoding
from common.errors import UserError

NO_ADAPTER = "none"


def check(decoding: Decoding) -> None:
    """Raise UserError where no page can be made."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('--page needs gradio, which is not installed: pip install "gradio>=5,<7"')


def serve(adapted: Any, decoding: Decoding, system: str, port: int) -> None:
    """Show the page until Ctrl-C."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no telemetry
    build(adapted, decoding, system).launch(server_name="127.0.0.1", server_port=port, share=False, inbrowser=False)


class Room:
    """One model for all visitors, one answer at a time."""

    def __init__(self, adapted: Any, decoding: Decoding):
        self.adapted, self.decoding, self.one_at_a_time = adapted, decoding, threading.Lock()

    def head(self, name: str) -> str:
        """The line of what answers, with that adapter on."""
        from common.commands import chat

        with self.one_at_a_time:
            self._put_on(name)
            return chat.line(self.adapted, self.decoding)

    def answer(self, question: str, shown: list[dict], system: str, name: str) -> Iterator[tuple[str, list[dict]]]:
        """Yields the emptied question field and the messages shown, the last one growing."""
        import gradio  # pyright: ignore[reportMissingImports]  an extra: rating

        from common.commands import chat
        from common.conversation import Conversation

        if not question.strip():
            yield question, shown
            return
        shown = [*shown, {"role": "user", "content": question.strip()}, {"role": "assistant", "content": ""}]
        with self.one_at_a_time:
            try:
                self._put_on(name)
                conversation = Conversation(self.adapted.tokenizer, self.adapted.template, system.strip())
                conversation.turns = [said(turn) for turn in shown[:-2]]
                prompt, left_out = chat.prompt_within(self.adapted, conversation, self.decoding, question.strip())
                if left_out:
                    gradio.Info(f"The first {left_out} questions no longer fit and are left out.")
                for piece in chat.pieces(self.adapted, prompt, self.decoding):
                    if isinstance(piece, str):
                        shown[-1]["content"] += piece
                        yield "", shown
                    elif piece.note:
                        gradio.Info(piece.note)
                        yield "", shown
            except UserError as error:
                gradio.Warning(str(error))
                yield question, shown[:-2]

    def _put_on(self, name: str) -> None:
        wanted = None if name == NO_ADAPTER else name
        if wanted != self.adapted.current:
            self.adapted.use(wanted)


def build(adapted: Any, decoding: Decoding, system: str) -> Any:
    """The page: a conversation of its own for each visitor."""
    import gradio  # pyright: ignore[reportMissingImports]  an extra

    from common.commands import chat

    room = Room(adapted, decoding)
    with gradio.Blocks(title="tunebook chat", analytics_enabled=False) as page:
        status = gradio.Markdown(chat.line(adapted, decoding))
        messages = gradio.Chatbot(label="Conversation", height=480)
        question = gradio.Textbox(label="Question", placeholder="Enter sends, Shift+Enter begins a new line")
        with gradio.Row():
            stop, reset = gradio.Button("Stop"), gradio.Button("Reset")
        with gradio.Row():
            system_text = gradio.Textbox(system, label="System text")
            names = [*adapted.folders, NO_ADAPTER]
            adapter = gradio.Dropdown(names, value=adapted.current or NO_ADAPTER, label="Adapter")
        asked = question.submit(room.answer, [question, messages, system_text, adapter], [question, messages])
        stop.click(None, cancels=[asked])
        reset.click(list, None, messages, cancels=[asked])
        adapter.change(room.head, adapter, status)
    return page


def said(turn: dict) -> dict[str, str]:
    """A shown message as a turn; the page gives its text as text or in parts."""
    content = turn["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    return {"role": turn["role"], "content": content}
