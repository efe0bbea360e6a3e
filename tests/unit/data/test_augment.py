"""New rows from old ones: rules, and models, here an HTTP server of fixed rules and the bundled model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tunebook.common.commands.augment import LocalModel
from tunebook.common.data import augment
from tunebook.common.data.paraphrase import wordings
from tunebook.common.errors import UserError
from tunebook.common.generation import endpoint


def _row(number, instruction, output="The answer.", text=""):
    return {"instruction": instruction, "input": text, "output": output, "row": number, "source": "x"}


ROWS = [
    _row(1, "Name three birds of the sea.", "Gull, tern and auk."),
    _row(2, "What is the tallest tree?", "A redwood."),
    _row(3, "Translate the sentence.", "Das Haus ist rot.", "The house is red."),
    _row(4, "Name a fruit that grows on a tree.", "A pear.", "N/A"),
    _row(5, "Nenne drei Vögel.", "Möwe, Amsel, Fink."),
]


def _of(rows, method):
    return [row for row in rows if row["augmented"] == method]


def test_originals_are_kept_and_marked():
    out, counts = augment.augment(iter(ROWS), ["templates", "fold_input"])
    originals = _of(out, None)
    assert [{**row, "row": row["from"]} for row in originals] == [
        {**row, "augmented": None, "from": row["row"]} for row in ROWS
    ]
    assert [row["row"] for row in out] == list(range(1, len(out) + 1))
    assert [row["from"] for row in out] == sorted(row["from"] for row in out)
    assert counts.rows == 5
    assert counts.made == {"templates": 4, "fold_input": 2}
    assert counts.skipped == {
        "templates": {"the instruction is none of the wordings that are known (English)": 1},
        "fold_input": {"no input": 3},
    }
    assert len(out) == 5 + 4 + 2
    assert counts.summary().startswith(
        "5 originals kept; new rows: 4 by templates, 2 by fold_input; templates left out 1"
    )
    json.dumps(counts.as_dict())


def test_templates_change_the_instruction_alone():
    out, _ = augment.augment(ROWS, ["templates"], copies=3)
    for number, row in ((1, ROWS[0]), (2, ROWS[1])):
        new = [one for one in _of(out, "templates") if one["from"] == number]
        assert len({one["instruction"] for one in new}) == 3
        assert all(one["instruction"] in wordings(row["instruction"]) for one in new)
        assert all((one["input"], one["output"]) == (row["input"], row["output"]) for one in new)


def test_seed_share_and_independence_of_methods():
    rows = [_row(place, f"Name {place} birds.") for place in range(1, 401)]
    first, _ = augment.augment(rows, ["templates"], share=0.5)
    assert first == augment.augment(rows, ["templates"], share=0.5)[0]
    assert first != augment.augment(rows, ["templates"], seed=1, share=0.5)[0]
    assert 150 < len(_of(first, "templates")) < 250
    both, _ = augment.augment(rows, ["fold_input", "templates"], share=0.5)
    strip = [{name: value for name, value in row.items() if name != "row"} for row in _of(both, "templates")]
    assert strip == [{name: value for name, value in row.items() if name != "row"} for row in _of(first, "templates")]


def test_wordings():
    order = wordings("Name three birds of the sea.")
    assert len(order) == len(set(order)) >= 12
    assert "Please name three birds of the sea." in order
    assert "Could you please name three birds of the sea?" in order
    question = wordings("Who built the old mill?")
    assert len(question) >= 12
    assert "I would like to know: who built the old mill?" in question
    two = wordings("Read this. Name three birds")
    assert all(not text.endswith("?") for text in two)
    assert not any(text.endswith("Thank you.") for text in wordings("Name three birds"))
    for text in ("", "Birds of the sea", "Was ist das?", "Nenne drei Vögel.", "Name it?", "NASA was founded when?"):
        assert wordings(text) == []


@pytest.mark.parametrize(
    ("row", "made"),
    [
        (_row(1, "Name a fruit that grows on a tree.", "A pear.", "N/A"), True),
        (_row(1, "Explain why the sea is salty.", "Rivers carry salt.", "the sea"), True),
        (_row(1, "Write a short poem about the spring rain.", "Soft it falls.", "Theme: growth"), True),
        (_row(1, "Write a short poem about the spring rain.", "All growth is slow.", "Theme: growth"), False),
        (_row(1, "Translate the sentence.", "Das Haus ist rot.", "The house is red."), False),
        (_row(1, "Describe the object.", "It barks.", "Dog"), False),
        (_row(1, "Write down what the two numbers have in common.", "Both are even.", "12, 44"), False),
        (_row(1, "Is it a bird?", "Yes.", ""), False),
    ],
)
def test_drop_input(row, made):
    out, counts = augment.augment([row], ["drop_input"])
    assert len(_of(out, "drop_input")) == made
    assert sum(counts.skipped["drop_input"].values()) == (not made)
    if made:
        assert _of(out, "drop_input")[0]["input"] == ""


def test_chats_and_pairs():
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Name three birds."}]
    chat = {"messages": [*turns, {"role": "assistant", "content": "Gull, tern, auk."}]}
    out, _ = augment.augment([chat, {"prompt": "Who are you?", "completion": "A helper."}], ["templates"])
    new = _of(out, "templates")
    assert [turn["role"] for turn in new[0]["messages"]] == ["system", "user", "assistant"]
    assert new[0]["messages"][1]["content"] in wordings("Name three birds.")
    assert out[0]["messages"][1]["content"] == "Name three birds."
    assert new[1]["prompt"] in wordings("Who are you?")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["templtes"]}, "the nearest is templates"),
        ({"methods": ["responses"]}, "needs a model"),
        ({"methods": ["templates"], "share": 0.0}, "share over 0"),
        ({"methods": ["templates"], "copies": 0}, "1 copy or more"),
    ],
)
def test_wrong_requests(options, message):
    with pytest.raises(UserError, match=message):
        augment.augment(ROWS, **options)


class _Server(ThreadingHTTPServer):
    """An OpenAI-compatible server of rules: translates by reversing words, rewrites and answers by a form."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen, self.trouble = [], []  # trouble: what to do to the next requests instead of answering
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        trouble = self.server.trouble.pop(0) if self.server.trouble else None
        if trouble == "page":
            return self._send(200, b"<html>hello</html>")
        if trouble:
            return self._send(trouble, b'{"error": "not now"}')
        reply = {"choices": [{"message": {"role": "assistant", "content": _reply(body)}}]}
        return self._send(200, json.dumps(reply).encode())

    def _send(self, code, data):
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "http://127.0.0.1:1/v1/chat/completions")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _reply(body):
    prompt = body["messages"][0]["content"]
    text = prompt.partition("\n\n")[2]
    if prompt.startswith("Translate the following text into English"):
        return "Back: " + " ".join(reversed(text.split()))
    if prompt.startswith("Translate the following text"):
        return " ".join(reversed(text.split()))
    if prompt.startswith("Say"):
        return f"In other words, {text}"
    return "" if "tree" in prompt else f"Answer {body['seed'] % 2}"


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(endpoint.KEY, "secret")
    server = _Server()
    yield server
    server.shutdown()
    server.server_close()


def _endpoint(server, **options):
    return endpoint.Endpoint(server.url, "rules", {"max_tokens": 512}, first_wait=0.01, **options)


def test_a_model_makes_rows(server):
    out, counts = augment.augment(
        ROWS[:3], ["paraphrase", "back_translation", "responses"], copies=2, model=_endpoint(server)
    )
    assert [row["instruction"] for row in _of(out, "paraphrase")] == [
        f"In other words, {row['instruction']}" for row in ROWS[:3]
    ]
    assert counts.skipped["paraphrase"] == {"the same words": 3}
    assert _of(out, "back_translation")[0]["instruction"] == "Back: Name three birds of the sea."
    assert all(row["output"] == ROWS[row["from"] - 1]["output"] for row in _of(out, "back_translation"))
    answers = {(row["from"], row["output"]) for row in _of(out, "responses")}
    assert answers == {(1, "Answer 0"), (1, "Answer 1"), (3, "Answer 0"), (3, "Answer 1")}
    assert counts.skipped["responses"] == {"no answer": 2}
    path, key, body = server.seen[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "rules", 0.8)


def test_an_endpoint_is_asked_again(server):
    server.trouble = [500, 429, "page"]
    assert _endpoint(server, concurrency=1).answers(["Say it.\n\nhello"]) == ["In other words, hello"]
    assert len(server.seen) == 4


def test_answers_keep_their_order(server):
    texts = [f"Say it.\n\nnumber {place}" for place in range(40)]
    assert _endpoint(server).answers(texts) == [f"In other words, number {place}" for place in range(40)]


def test_a_prompt_without_an_answer_is_none(server):
    model = _endpoint(server, concurrency=1, retries=1)
    assert model.answers(["Say it.\n\na"]) == ["In other words, a"]
    server.trouble = [503, 503]
    assert model.answers(["Say it.\n\na", "Say it.\n\nb"]) == [None, "In other words, b"]


def test_a_dead_endpoint_is_given_up(server, monkeypatch, caplog):
    monkeypatch.setattr(endpoint, "GIVE_UP", 3)
    model = _endpoint(server, concurrency=1, retries=0)
    server.trouble = [*[None], *[503] * 50]
    answers = model.answers(["Say it.\n\na"] * 20)
    assert answers == ["In other words, a"] + [None] * 19
    assert len(server.seen) == 4
    assert "3 prompts in a row stayed without a reply" in caplog.text


@pytest.mark.parametrize("code", [401, 404, 302])
def test_a_refusal_is_not_repeated(server, code):
    server.trouble = [code]
    with pytest.raises(UserError, match=f"refuses: {code}"):
        _endpoint(server, concurrency=1).answers(["hello"])
    assert len(server.seen) == 1


def test_an_address_where_nobody_answers(server):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="is the server running"):
        endpoint.Endpoint(url, "rules", {}, retries=1, first_wait=0.01).answers(["hello"])


def test_the_key_is_not_shown(server):
    assert "secret" not in repr(_endpoint(server))


def test_the_bundled_model_answers():
    model = LocalModel("pocket", 8)
    prompts = ["What colour is the sky?", "Say the word.", "Name a bird that you know of."]
    answers = model.answers(prompts)
    assert answers == model.answers(prompts)
    assert any(answers)
    twice = model.answers(["Name a bird that you know of."] * 2, temperature=2.0, seed=3)
    assert twice[0] != twice[1]
    assert model.answers(["word " * 9000, prompts[0]]) == [None, answers[0]]
    sampled = model.answers(prompts, temperature=1.0, seed=3)
    assert sampled == model.answers(prompts, temperature=1.0, seed=3)
    out, counts = augment.augment(ROWS[:2], ["responses"], model=model)
    assert counts.made["responses"] + sum(counts.skipped["responses"].values()) == 2
    assert len(out) == 2 + counts.made["responses"]


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        LocalModel(str(tmp_path), 8)
