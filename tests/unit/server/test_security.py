"""Who may call, and what every answer has: names, origins, tokens, headers, one form of errors."""

import socket

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from starlette.applications import Starlette  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.responses import FileResponse, PlainTextResponse, Response  # noqa: E402
from starlette.routing import Route  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from vexpress.errors import InputError  # noqa: E402
from vexpress.server.answers import Answers  # noqa: E402
from vexpress.server.security import COOKIE, Gate  # noqa: E402
from vexpress.server.settings import ServeSettings  # noqa: E402

TOKEN = "correct horse battery"
FRIEND = "https://friend.example"
ASKS_BEFORE = {
    "origin": FRIEND,
    "access-control-request-method": "DELETE",
    "access-control-request-headers": "authorization, content-type",
}


def service(**settings) -> TestClient:
    """What the service's application is behind, with small pages of our own."""

    async def fail(request):
        raise RuntimeError("a bug")

    routes = [
        Route("/v1/text", lambda request: PlainTextResponse("hello"), methods=["GET", "POST", "DELETE"]),
        Route("/v1/file", lambda request: FileResponse(__file__)),
        Route("/v1/bug", fail),
    ]
    own = ServeSettings(**settings)
    layers = [Middleware(Answers, settings=own), Middleware(Gate, settings=own)]
    return TestClient(Starlette(routes=routes, middleware=layers), base_url="http://localhost:8000")


@pytest.mark.parametrize("origin", ["http://[", "http://]", "http://[::1", "null", "\x7f"])
def test_an_origin_that_is_none_is_another_page(origin):
    for client in (service(), service(token=TOKEN)):
        headers = {"origin": origin, "authorization": f"Bearer {TOKEN}"}
        assert client.get("/v1/text", headers=headers).status_code == 200
        answer = client.post("/v1/text", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["message"]


def test_the_allowed_page_may_send_json_tokens_and_delete():
    for settings in ({}, {"token": TOKEN}):
        client = service(allow_origin=FRIEND, **settings)
        answer = client.options("/v1/text", headers=ASKS_BEFORE)  # a browser sends no token here
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert "DELETE" in answer.headers["access-control-allow-methods"]
        allowed = answer.headers["access-control-allow-headers"].split(", ")
        assert {"authorization", "content-type"} <= set(allowed)
        headers = {"origin": FRIEND, "authorization": f"Bearer {TOKEN}"}
        answer = client.delete("/v1/text", headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, FRIEND)


def test_other_pages_are_not_told_that_they_may():
    for client in (service(), service(allow_origin=FRIEND), service(allow_origin=FRIEND, token=TOKEN)):
        answer = client.options("/v1/text", headers={**ASKS_BEFORE, "origin": "https://evil.example"})
        assert answer.status_code in (401, 405)
        assert "access-control-allow-origin" not in answer.headers


def test_errors_of_the_gate_can_be_read_by_the_allowed_page_and_have_all_headers():
    answer = service(allow_origin=FRIEND, token=TOKEN).get("/v1/text", headers={"origin": FRIEND})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_errors_of_libraries_and_bugs_have_our_form():
    client = service()
    size = len(client.get("/v1/file").content)
    answer = client.get("/v1/file", headers={"range": f"bytes={size}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{size}"
    assert answer.json()["error"]["message"]
    for path, method, headers, status in (
        ("/v1/file", "GET", {"range": "lines=1"}, 400),
        ("/v1/nothing", "GET", {}, 404),
        ("/v1/file", "DELETE", {}, 405),
        ("/v1/bug", "GET", {}, 500),
    ):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["field"] is None and error["message"] and "a bug" not in error["message"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/v1/text").text == "hello"


@pytest.mark.parametrize(
    "token", ["passwört-mit-umlauten", f" {TOKEN}", f"{TOKEN}\n", "tab\tin the middle", "\udcff" * 16]
)
def test_a_token_is_what_a_header_can_carry(token):
    with pytest.raises(InputError, match="printable ASCII") as error:
        ServeSettings(token=token)
    assert error.value.field == "token"
    assert token not in str(error.value)


def test_any_other_token_opens_by_header_and_by_cookie():
    token = "".join(map(chr, range(33, 127))) + " !"
    client = service(token=token)
    assert client.get("/v1/text", headers={"authorization": f"Bearer {token}"}).status_code == 200
    response = Response()
    response.set_cookie(COOKIE, token)
    cookie = response.headers["set-cookie"].rsplit("; Path", 1)[0]
    assert client.get("/v1/text", headers={"cookie": cookie}).status_code == 200


@pytest.mark.parametrize(
    ("host", "name", "token", "status"),
    [
        ("127.0.0.1", "localhost:8000", None, 200),
        ("127.0.0.1", "[::1]:8000", None, 200),
        ("127.0.0.1", "LOCALHOST", None, 200),
        ("127.0.0.1", "testserver", None, 421),
        ("127.0.0.1", "evil.example", None, 421),
        ("::1", "evil.example", TOKEN, 421),
        ("0.0.0.0", "evil.example:8000", None, 421),  # a name that its owner has led to this machine
        ("192.168.1.5", "evil.example:8000", None, 421),
        ("0.0.0.0", "", None, 421),
        ("0.0.0.0", "192.168.1.5:8000", None, 200),
        ("0.0.0.0", "[fd00::5]:8000", None, 200),
        ("0.0.0.0", socket.gethostname(), None, 200),
        ("talking.example", "talking.example:8000", None, 200),
        ("0.0.0.0", "talking.example:8000", TOKEN, 200),  # the page of another owner does not have the token
    ],
)
def test_names_that_may_be_called_by(host, name, token, status):
    headers = {"host": name, "origin": f"http://{name}", "authorization": f"Bearer {TOKEN}"}
    assert service(host=host, token=token).post("/v1/text", headers=headers).status_code == status
