"""The chat as a page in the browser, on this machine alone (127.0.0.1), through Gradio."""

import dataclasses
import html
import importlib.util
import itertools
import threading
from collections.abc import Iterator
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.generation.decoding import Decoding
from tunebook.common.pages import served

NONE = "none"  # the name of no adapter


def check(port: int) -> None:
    """Raise UserError where no page can be made."""
    served.check_port(port)
    if importlib.util.find_spec("gradio") is None:
        raise UserError('--page needs gradio, which is not installed: pip install "gradio>=6,<7"')


def serve(adapted: Any, decoding: Decoding, system: str, port: int) -> None:
    """Show the page until Ctrl-C.

    Raises:
        UserError: the port is taken.
    """
    served.launch(lambda: build(adapted, decoding, system), "chat page", port)


class ChatServer:
    """What the page asks for: one model for all visitors, one answer at a time, a conversation of its own for each
    visitor, which the page sends along."""

    def __init__(self, adapted: Any, decoding: Decoding):
        self.adapted, self.decoding, self.one_at_a_time = adapted, decoding, threading.Lock()

    def status(self, name: str, temperature: float, longest: int) -> str:
        """What is in use, in a line."""
        from tunebook.common.generation import chat

        with self.one_at_a_time:
            self._put_on(name)
            return chat.line(self.adapted, with_choices(self.decoding, temperature, longest))

    def answer(
        self, question: str, history: list[dict], system: str, name: str, temperature: float, longest: int, both: bool
    ) -> Iterator[tuple[str, str]]:
        """The answer so far, and that of the base beside it where it is asked for."""
        import gradio  # pyright: ignore[reportMissingImports]  an extra: rating

        if not question.strip():
            return
        with self.one_at_a_time:
            try:
                choices, text = with_choices(self.decoding, temperature, longest), ""
                for text in self._stream(question, history, system, name, choices):
                    yield text, ""
                for base in self._stream(question, history, system, NONE, choices) if both and name != NONE else ():
                    yield text, base
            except UserError as error:
                raise gradio.Error(str(error)) from None

    def _put_on(self, name: str) -> None:
        wanted = None if name == NONE else name
        if wanted != self.adapted.current:
            self.adapted.use(wanted)

    def _stream(self, question: str, history: list[dict], system: str, name: str, choices: Decoding) -> Iterator[str]:
        """The answer of one model so far, again and again."""
        import gradio  # pyright: ignore[reportMissingImports]

        from tunebook.common.generation import chat

        text = ""
        self._put_on(name)
        conversation = chat.Conversation(self.adapted.tokenizer, self.adapted.template, system.strip())
        conversation.turns = said(history)
        prompt, left_out = chat.prompt_within(self.adapted, conversation, choices, question.strip())
        if left_out:
            gradio.Info(f"The first {left_out} questions no longer fit and are left out.")
        for piece in chat.pieces(self.adapted, prompt, choices):
            if isinstance(piece, str):
                text += piece
                yield text
            elif piece.note:
                gradio.Info(piece.note)


def build(adapted: Any, decoding: Decoding, system: str) -> Any:
    """The page: the conversation, and beside it what can be chosen."""
    import gradio  # pyright: ignore[reportMissingImports]  an extra: rating

    server, names = ChatServer(adapted, decoding), [*adapted.folders, NONE]
    current, most = adapted.current or NONE, max(2048, decoding.max_new_tokens)
    with gradio.Blocks(title="tunebook chat", analytics_enabled=False) as page:
        gradio.HTML(served.head("chat with a model of this machine", f"Chat with {html.escape(adapted.name)}"))
        line = gradio.Markdown(server.status(current, decoding.temperature, decoding.max_new_tokens))
        with gradio.Row():
            talk = gradio.Column(scale=3, min_width=320)
            with gradio.Column(scale=2, min_width=320):
                system_text = gradio.Textbox(system, label="System text")
                adapter = gradio.Dropdown(names, value=current, label="Adapter")
                temperature = gradio.Slider(0, 2, decoding.temperature, step=0.05, label="Temperature (0: likeliest)")
                longest = gradio.Slider(1, most, decoding.max_new_tokens, step=1, label="Longest answer, tokens")
                both = gradio.Checkbox(False, label="Ask the base, too, after the same turns", visible=len(names) > 1)
                base = gradio.Textbox(label="What the base answers", lines=8, interactive=False, visible=False)
        with talk:
            gradio.ChatInterface(
                server.answer, chatbot=gradio.Chatbot(label="Conversation", height=520, buttons=["copy", "copy_all"]),
                additional_inputs=[system_text, adapter, temperature, longest, both], additional_outputs=[base],
                submit_btn="Send", stop_btn="Stop", analytics_enabled=False, api_name="chat",
            )  # fmt: skip
        both.change(lambda on: gradio.update(visible=on, value=""), both, base)
        for setting in (adapter, temperature, longest):
            setting.change(server.status, [adapter, temperature, longest], line)
    return page


def with_choices(decoding: Decoding, temperature: float, longest: int) -> Decoding:
    """The decoding of the command line with what was chosen on the page. What narrows sampling, and beams, hold only
    where they were given for: a temperature of 0 takes the likeliest token, one above it samples."""
    values: dict[str, Any] = {"temperature": float(temperature), "max_new_tokens": int(longest)}
    if not temperature:
        values |= {"top_p": 1.0, "top_k": 0}
    else:
        values["num_beams"] = 1
    return dataclasses.replace(decoding, **values)


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
