"""Pages that a server of this machine shows (through Gradio): their look, as of the written ones, and launch."""

import importlib
import os
import socket
from collections.abc import Callable
from typing import Any

from tunebook.common.errors import UserError

CSS = """
footer { display: none !important; }
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; }
.kind { margin: 0; font-size: .8rem; letter-spacing: .04em; color: var(--body-text-color-subdued); }
.served h1 { margin: .1rem 0 .4rem; font-size: 1.6rem; font-weight: 700; color: var(--body-text-color); }
.served p { margin: .2rem 0 .5rem; max-width: 50rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
@media (max-width: 40rem), (hover: none) { .keys { display: none; } }
"""
TAKEN = "--port {} is taken, perhaps by another page; choose another"
# The page loads nothing from elsewhere, whatever gradio's own page or an answer names.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'none'"
)


def launch(build: Callable[[], Any], kind: str, port: int) -> None:
    """Show a page of this machine alone until Ctrl-C. What an answer names elsewhere, such as an image, is not fetched.

    Args:
        build: makes its Blocks, once gradio is imported. kind: what the terminal calls the page.

    Raises:
        UserError: the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no telemetry
    gradio = importlib.import_module("gradio")
    middleware = importlib.import_module("starlette.middleware").Middleware
    trusted = importlib.import_module("starlette.middleware.trustedhost").TrustedHostMiddleware
    # A page elsewhere whose name is made to point here (DNS rebinding) comes with its own name as the host.
    guards = [middleware(trusted, allowed_hosts=["127.0.0.1", "localhost"]), middleware(Guard)]
    page = build()
    try:
        page.launch(
            server_name="127.0.0.1", server_port=port, share=False, inbrowser=False, ssr_mode=False,
            app_kwargs={"middleware": guards}, prevent_thread_lock=True, **look(gradio),
        )  # fmt: skip
    except OSError:  # taken since
        raise UserError(TAKEN.format(port)) from None
    print(f"{kind}: http://127.0.0.1:{page.server_port} (this machine alone; Ctrl-C ends)", flush=True)
    page.block_thread()


class Guard:
    """Adds POLICY to every response."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def check_port(port: int) -> None:
    """
    Raises:
        UserError: nothing can listen there; said before a model is loaded.
    """
    if not 0 < port < 2**16:
        raise UserError(f"--port {port}: ports are 1 to {2**16 - 1}")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a page that has just ended is not there
        try:
            trial.bind(("127.0.0.1", port))
        except PermissionError:
            raise UserError(f"--port {port}: this user may not listen there; choose one above 1023") from None
        except OSError:
            raise UserError(TAKEN.format(port)) from None


def look(gradio: Any) -> dict[str, Any]:
    """Arguments of Blocks.launch. Fonts are those of the system: nothing is fetched."""
    theme = gradio.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": CSS, "footer_links": [], "quiet": True}


def head(kind: str, title: str, *sentences: str) -> str:
    """The head of a page as HTML; the words are ours, nothing in them is escaped."""
    said = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    return f'<div class="served"><p class="kind">tunebook · {kind}</p><h1>{title}</h1>{said}</div>'
