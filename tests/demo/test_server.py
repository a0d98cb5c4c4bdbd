"""The demo answers its page, and nobody else; what it is sent does no harm."""

import http.client
import json
import socket
import threading

import numpy as np
import pytest
from pictures import encoded

from otter_jax.commands import demo as command
from otter_jax.demo import server

RED = encoded(np.full((8, 8, 3), (250, 0, 0), np.uint8), "PNG")


def asked(demo, path, body=None, method=None, **headers):
    """The status, the headers and the JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=60)
    connection.request(method or ("POST" if body is not None else "GET"), path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["content-type"] == "application/json"
    return answer.status, answer.headers, json.loads(content) if is_json else content.decode()


@pytest.fixture
def ask(demo):
    """Asks about a red picture."""
    _, _, sent = asked(demo, "/pictures", RED)

    def ask(**changed):
        question = {"classes": "cat, dog", "templates": "a {}.", "multi": False} | sent | changed
        status, _, answer = asked(demo, "/ask", json.dumps(question).encode())
        return status, answer

    return ask


def test_the_classes_of_a_picture_are_ranked(ask):
    status, answer = ask()
    assert status == 200
    assert [guess["name"] for guess in answer["guesses"]] == ["dog", "cat"]
    cosine = 250 / np.hypot(250, 60)
    assert answer["guesses"][0]["cosine"] == pytest.approx(cosine, abs=1e-6)
    expected = 1 / (1 + np.exp(-10 * cosine))
    assert answer["guesses"][0]["probability"] == pytest.approx(expected, abs=1e-6)
    assert answer["notes"] == []
    _, answer = ask(multi=True)
    floor = 60 / np.hypot(250, 60)
    expected = 1 / (1 + np.exp(10 * (floor - cosine)))
    assert answer["guesses"][0]["probability"] == pytest.approx(expected, abs=1e-6)


def test_the_page_comes_with_a_policy_that_lets_nothing_else_in(demo):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/about", "json")):
        status, headers, _ = asked(demo, path)
        assert status == 200
        assert kind in headers["content-type"]
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
    assert asked(demo, "/", method="HEAD")[0] == 200
    assert asked(demo, "/ask", method="GET")[0] == 405
    assert asked(demo, "/about")[2]["model"] == "first, step 3"  # and not where it lies


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/%2e%2e/server.py", "//etc/passwd", "/server.py", "/page.html"]
)
def test_no_file_is_reached(demo, path):
    status, headers, answer = asked(demo, path)
    assert (status, answer) == (404, {"error": "Not Found"})
    assert "content-security-policy" in headers


def test_a_text_that_is_a_path_stays_a_text(demo, ask, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("{} secret")
    assert ask(classes=str(file))[1]["guesses"][0]["name"] == str(file)
    status, answer = ask(templates=str(file))
    assert status == 400
    assert f"The template '{file}' has no {{}}" in answer["error"]
    assert ask(picture=str(file))[0] == 410
    assert asked(demo, "/pictures", str(file).encode())[0] == 400


def test_another_host_and_another_page_are_refused(demo):
    for host, status in (
        ("evil.example", 421), ("", 421), ("localhost:1", 200), ("[::1]:80", 200),
    ):  # fmt: skip
        assert asked(demo, "/about", Host=host)[0] == status, host
    for origin in ("http://evil.example", "null", f"http://localhost:{demo.port}"):
        assert asked(demo, "/ask", b"{}", Origin=origin)[0] == 403, origin
    assert asked(demo, "/ask", b"{}", Origin=f"http://127.0.0.1:{demo.port}")[0] == 400


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"classes": " ,\n"}, 400, "no classes in the list: type names"),
        ({"classes": 'dog, "sofa'}, 400, "a name with commas stands in quotes"),
        ({"classes": "x" * 30_000}, 400, "more than 20,000 characters"),
        ({"classes": ",".join(map(str, range(1_001)))}, 400, "at most 1,000 classes"),
        ({"classes": "x" * 9_000, "templates": "{}" * 5_000}, 400, "more than 400,000"),
        ({"templates": "a {}.\nb"}, 400, "The template 'b' has no {}"),
        ({"classes": "\ud800"}, 400, "This is no question"),
        ({"multi": float("nan")}, 400, "This is no question"),
        ({"classes": ["dog"]}, 400, "This is no question"),
        ({"picture": "0" * 32}, 410, "not kept any more"),
        ({"classes": "broken"}, 500, "The server made a mistake"),
    ],
)
def test_a_wrong_question_is_told_in_words(ask, changed, status, words):
    found, answer = ask(**changed)
    assert found == status
    assert words in answer["error"]
    assert "secret" not in answer["error"]
    assert ask()[0] == 200  # it lives on


def test_what_is_odd_about_classes_is_noted(ask):
    (note,) = ask(classes="dog")[1]["notes"]
    assert note.startswith("'dog' is the only class")
    assert ask(classes="dog", multi=True)[1]["notes"] == []
    assert ask(classes="dog,\n犬\n")[1]["notes"] == ["1 class is none but unknown tokens."]
    (note,) = ask(classes="dog, cat, dog")[1]["notes"]
    assert note == "The list: 1 name is there again, such as 'dog'."


def test_nonsense_is_no_question_and_no_picture(demo):
    for body in (b"", b"[" * 500_000, b"NaN", b"1" * 10_000, b"\xe9", b"[]"):
        assert asked(demo, "/ask", body)[0] == 400
    for body in (b"", b"hello", RED[:40]):
        status, _, answer = asked(demo, "/pictures", body)
        assert status == 400
        assert "cannot be read" in answer["error"]


def test_lengths_that_are_too_large_or_lie_are_refused(demo):
    for length, status in (("abc", 400), ("-1", 400), ("9" * 12, 413), ("9" * 40, 400)):
        with socket.create_connection(("127.0.0.1", demo.port), 60) as connection:
            request = f"POST /pictures HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}"
            connection.sendall(request.encode() + b"\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 %d " % status), length


def test_who_is_slow_is_not_waited_for(demo, monkeypatch):
    monkeypatch.setattr(server, "SECONDS", 0.2)
    for sent, begin in ((b"GET / HT", b""), (b"POST /ask HTTP/1.1\r\nHost: localhost\r\n"
                         b"Content-Length: 9\r\n\r\n{", b"HTTP/1.1 408 ")):  # fmt: skip
        with socket.create_connection(("127.0.0.1", demo.port), 60) as connection:
            connection.sendall(sent)
            assert connection.recv(100).startswith(begin)


def test_of_many_questions_at_once_some_are_told_to_come_again(demo, ask, monkeypatch):
    go, answers = threading.Event(), []
    whole = demo.session.ask

    def slow(*given):
        go.wait(60)
        return whole(*given)

    monkeypatch.setattr(demo.session, "ask", slow)
    threads = [threading.Thread(target=lambda: answers.append(ask()[0])) for _ in range(24)]
    for thread in threads:
        thread.start()
    while len(answers) < 24 - server.WAITING:
        threads[0].join(0.05)
    go.set()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [200] * server.WAITING + [503] * (24 - server.WAITING)


def test_a_port_in_use_and_a_missing_library_are_one_paragraph(demo, capsys, monkeypatch):
    assert command.main(["runs/first", "--port", str(demo.port)]) == 2
    said = capsys.readouterr().err
    assert f"Nothing can listen on 127.0.0.1, port {demo.port} (" in said
    assert "--port 0 takes any that is free" in said
    assert command.main(["runs/first", "--port", "70000"]) == 2
    assert "a number from 0 to 65535" in capsys.readouterr().err
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["runs/first"]) == 2
    assert "pip install starlette uvicorn" in capsys.readouterr().err
