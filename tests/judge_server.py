"""An OpenAI-compatible server that judges by rule."""

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = re.compile(
    r"--- answer ([AB])(?: \d+)? begins \[(\w+)\] ---\n(.*?)\n--- answer \1(?: \d+)? ends \[\2\] ---", re.S
)


def first(a, b):
    return "A"


def longer(a, b):
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def better(a, b):
    """The answer that says it is good."""
    return "A" if "good" in a and "good" not in b else "B" if "good" in b and "good" not in a else "tie"


class Server:
    """`rule(a, b)` gives the verdict. `before(n, text)` is called for the n-th request (from 0) and may return a status
    or bytes to send instead, or "cut" to close the connection.

    Attributes: prompts: how often each was asked. answered: how often each was answered.
    """

    def __init__(self, rule=better, before=None, says_tokens=True):
        self.rule, self.before, self.says_tokens = rule, before, says_tokens
        self.prompts, self.answered, self.bodies, self.headers = Counter(), Counter(), [], []
        self.strays = []  # headers of requests that nobody should make
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer.handle(self)

            def do_GET(self):
                outer.strays.append(dict(self.headers))
                self.send_error(404)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle(self, request):
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.prompts[text] += 1
        instead = self.before(number, text) if self.before else None
        if instead == "cut":
            request.close_connection = True
            return
        status, reply = instead if isinstance(instead, tuple) else (200, instead or self.reply(text))
        if status == 200 and instead is None:
            with self.lock:
                self.answered[text] += 1
        request.send_response(status)
        request.send_header("Content-Length", str(len(reply)))
        if status == 302:
            request.send_header("Location", self.url + "/elsewhere")
        request.end_headers()
        request.wfile.write(reply)

    def reply(self, text):
        answers = {letter: said for letter, _, said in ANSWER.findall(text)}  # of conversations the last
        said = f"Reasons of a kind.\n\nVerdict: {self.rule(answers['A'], answers['B'])}"
        found = {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
        if self.says_tokens:
            found["usage"] = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
        return json.dumps(found).encode()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
