"""Talk to a model, with or without adapters. An answer is shown as it is made; Ctrl-C stops it, Ctrl-D ends.

    tunebook chat --model pocket --adapter runs/qlora_alpaca
    tunebook chat --model my_model/ --adapter first=runs/one second=runs/two --temperature 0.7 --top_p 0.9
    tunebook chat --model my_model/ --page
    tunebook chat --adapter runs/qlora_alpaca < questions.txt > answers.txt

The template is the one that the run saved, else the model's own. /help says what can be typed beside questions.
Answers go to standard output and all else to standard error, so that a file of questions gives a file of answers.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

from tunebook.common.errors import UserError, nearest
from tunebook.common.generation import chat as session

HELP = {
    "/reset": "forget what was said; the system text stays",
    "/system TEXT": "a system text from now on; without a text: none",
    "/input TEXT": "put this beside the next question, as the input of an instruction",
    "/adapter NAME": "another adapter from now on; none: the base alone; without a name: which there are",
    "/help": "these lines",
    "/quit": "end, as Ctrl-D does",
}


@dataclass
class Args:
    model: str = ""  # Hub name, folder, or pocket; default: the base that the adapter names, or pocket
    adapter: list[str] = field(default_factory=list)  # folders of runs or adapters, also NAME=FOLDER; the first is used
    template: str = ""  # alpaca, chatml, llama2, llama3, tokenizer, FILE.jinja; default: as it was trained
    system: str = ""  # a system text
    max_new_tokens: int = 256  # tokens of an answer
    temperature: float = 0.0  # 0: the likeliest token; above: sampled
    top_p: float = 1.0  # sample from the likeliest tokens that make up this probability
    top_k: int = 0  # sample from so many likeliest tokens; 0: from all
    num_beams: int = 1  # search so many sequences side by side; shown when it has ended
    seed: int = 0  # of sampling
    page: bool = False  # a page in the browser, on this machine alone, instead of the terminal
    port: int = 7860  # of the page


def main(args: Args) -> None:
    from tunebook.common.generation.decoding import Decoding

    fields = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "seed")
    decoding = Decoding(**{name: getattr(args, name) for name in fields})
    if args.page:
        from tunebook.common.commands import chat_page

        chat_page.check(args.port)  # before the model is loaded
    from tunebook.common.models.inference import InferenceModel

    adapted = InferenceModel(args.model, args.adapter, args.template)
    if args.page:
        chat_page.serve(adapted, decoding, args.system, args.port)
        return
    Terminal(adapted, decoding, args.system).run()


class Terminal:
    """The loop that reads questions and commands from standard input."""

    def __init__(self, adapted: Any, decoding: Any, system: str):
        self.adapted, self.decoding = adapted, decoding
        self.conversation = session.Conversation(adapted.tokenizer, adapted.template, system)
        self.typed = sys.stdin.isatty()
        self.say(session.line(adapted, decoding))
        self.notes()

    def run(self) -> None:
        """Until the input ends or says /quit."""
        if self.typed:
            import readline  # noqa: F401  earlier lines by the arrow keys

            self.say("Type a question. /help says what else; Ctrl-C stops an answer, Ctrl-D ends.")
        while True:
            try:
                text = input("> " if self.typed else "")
            except EOFError:
                return
            except KeyboardInterrupt:
                self.say("\n(Ctrl-D or /quit ends)")
                continue
            except UnicodeDecodeError as error:
                raise UserError(f"the input is not UTF-8 text: {error}") from None
            try:
                if text.startswith("/"):
                    if self.command(*text.partition(" ")[::2]):
                        return
                elif text.strip():
                    self.answer(text.strip())
            except UserError as error:
                self.say(f"error: {error}")
            self.notes()

    def command(self, name: str, rest: str) -> bool:
        """Do what a line that begins with a slash says; True: end."""
        rest = rest.strip()
        if name in ("/quit", "/exit"):
            return True
        if name == "/reset":
            self.conversation.reset()
            self.say("(forgotten)")
        elif name == "/system":
            self.conversation.system = rest
            self.say("(system text set)" if rest else "(no system text)")
        elif name == "/input":
            self.conversation.input = rest
            self.say("(it goes with the next question)" if rest else "(no input)")
        elif name == "/adapter":
            self.switch(rest)
        elif name == "/help":
            self.say("\n".join(f"{what:14}  {does}" for what, does in HELP.items()))
        else:
            known = [what.split()[0] for what in HELP]
            more = "to ask a question that begins with a slash, put a space before it"
            raise UserError(f"{name}: there is {', '.join(known)}{nearest(name, known)}; {more}")
        return False

    def switch(self, name: str) -> None:
        """Another adapter, for the conversation as it stands."""
        adapted = self.adapted
        if not name:
            self.say(f"in use: {adapted.current or 'none'}; there is {', '.join([*adapted.folders, 'none'])}")
            return
        try:
            adapted.use(None if name == "none" else name)
        finally:
            self.conversation.tokenizer, self.conversation.template = adapted.tokenizer, adapted.template
        self.say(session.line(adapted, self.decoding))

    def answer(self, question: str) -> None:
        """Ask, show the answer as it comes, and keep both."""
        prompt, left_out = session.prompt_within(self.adapted, self.conversation, self.decoding, question)
        if left_out:
            self.say(f"(the first {left_out} of its questions no longer fit and are left out)")
        said, note = "", ""
        try:
            with contextlib.closing(session.pieces(self.adapted, prompt, self.decoding)) as found:
                for piece in found:
                    if isinstance(piece, str):
                        said += piece
                        sys.stdout.write(piece)
                        sys.stdout.flush()
                    else:
                        note = piece.note
        except KeyboardInterrupt:
            note = "(stopped)"
        print(flush=True)
        if note:
            self.say(note)
        if said:
            self.conversation.add(question, said)

    def notes(self) -> None:
        for note in self.adapted.notes:
            self.say(f"note: {note}")
        self.adapted.notes.clear()

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
