"""One attempt to deliver, to real receivers on loopback: friendly, hostile and slow ones."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from service.domain.webhook import Message, Outcome, new_secret
from service.egress.addresses import AllowedNetworks
from service.egress.connections import Resolve, resolver
from service.egress.urls import UrlRules
from service.webhooks import sender
from service.webhooks.sender import Sender
from service.webhooks.signature import signed_headers
from tests.fixtures.receivers import LOOPBACK, RULES, Authority, receiving, silent
from tests.unit.service.egress.test_connections import Names

SECRET = new_secret()
HTTPS = UrlRules(LOOPBACK)


def message(url: str) -> Message:
    return Message("msg-1", 1, "whk-1", url, ("encrypted",), '{"type": "webhook.test"}')


def send(
    url: str,
    resolve: Resolve | None = None,
    rules: UrlRules = RULES,
    trusted: ssl.SSLContext | None = None,
) -> Outcome:
    with ThreadPoolExecutor(1) as threads:
        chosen = resolve or resolver(threads)
        return asyncio.run(Sender(rules, chosen, trusted).send(message(url), [SECRET]))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(Path(tmp_path_factory.mktemp("authority")))


@pytest.fixture
def short_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "ATTEMPT_SECONDS", 0.3)


def test_a_message_arrives_as_it_was_signed() -> None:
    with receiving() as receiver:
        assert send(receiver.url + "?a=b%20c") == Outcome(200)
        request = receiver.next_request()
    assert request.path == "/hook?a=b%20c"
    assert json.loads(request.body) == {"type": "webhook.test"}
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["User-Agent"].startswith("eigenpress/")
    timestamp = int(request.headers["webhook-timestamp"])
    assert abs(timestamp - time.time()) < 60
    signed = signed_headers([SECRET], "msg-1", timestamp, request.body.decode())
    assert signed.items() <= request.headers.items()


@pytest.mark.parametrize("status", [204, 299])
def test_any_status_of_success_will_do(status: int) -> None:
    with receiving(status) as receiver:
        assert send(receiver.url) == Outcome(status)


@pytest.mark.parametrize("status", [300, 304, 400, 404, 410, 500, 503])
def test_any_other_status_is_a_failure(status: int) -> None:
    with receiving(status) as receiver:
        assert send(receiver.url) == Outcome(status, f"The receiver answered with status {status}.")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int) -> None:
    with receiving() as private:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Location", private.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with receiving(answer=redirect) as receiver:
            assert send(receiver.url).status_code == status
        assert private.requests.empty()


class TestAddresses:
    def test_loopback_is_forbidden_unless_it_is_allowed(self) -> None:
        rules = UrlRules(AllowedNetworks(), allow_http=True)
        with receiving() as receiver:
            outcome = send(receiver.url, rules=rules)
            assert outcome.error == "127.0.0.1 is not a public address."
            url = f"http://hooks.example.com:{receiver.port}/"
            outcome = send(url, Names(["127.0.0.1"]), rules)
            assert outcome.error == "hooks.example.com has no public address."
            assert receiver.requests.empty()

    def test_a_name_that_changes_its_answer_gets_one_message(self) -> None:
        names = Names(["127.0.0.1"], ["169.254.169.254"])
        with receiving() as receiver:
            url = f"http://hooks.example.com:{receiver.port}/"
            assert send(url, names) == Outcome(200)
            assert send(url, names).error == "hooks.example.com has no public address."
            assert names.questions == 2
            assert receiver.next_request().headers["Host"] == f"hooks.example.com:{receiver.port}"
            assert receiver.requests.empty()

    def test_the_rules_hold_for_webhooks_that_exist(self) -> None:
        with receiving() as receiver:
            assert send(receiver.url, rules=HTTPS).error == "The URL must begin with https://."
            assert receiver.requests.empty()

    def test_the_environments_proxies_are_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        with receiving() as receiver:
            assert send(receiver.url) == Outcome(200)


class TestTls:
    def send(self, names: Sequence[str], authority: Authority, signer: Authority) -> Outcome:
        """Send to hooks.example.com, whose receiver has a certificate for these names."""
        with receiving(certificate=signer.certificate(names)) as receiver:
            url = f"https://hooks.example.com:{receiver.port}/"
            return send(url, Names(["127.0.0.1"]), HTTPS, authority.trusted())

    def test_the_certificate_is_checked_against_the_name(self, authority: Authority) -> None:
        assert self.send(["hooks.example.com"], authority, authority) == Outcome(200)

    @pytest.mark.parametrize("name", ["other.example.com", "127.0.0.1", "localhost"])
    def test_another_names_certificate_is_refused(self, authority: Authority, name: str) -> None:
        outcome = self.send([name], authority, authority)
        assert outcome.status_code is None
        assert "CERTIFICATE_VERIFY_FAILED" in str(outcome.error)

    def test_a_strangers_certificate_is_refused(self, authority: Authority, tmp_path: Path) -> None:
        outcome = self.send(["hooks.example.com"], authority, Authority(tmp_path))
        assert "CERTIFICATE_VERIFY_FAILED" in str(outcome.error)

    def test_a_receiver_without_tls_is_none(self, authority: Authority) -> None:
        with receiving() as receiver:
            url = f"https://hooks.example.com:{receiver.port}/"
            outcome = send(url, Names(["127.0.0.1"]), HTTPS, authority.trusted())
        assert "does not answer" in str(outcome.error)


class TestSlow:
    @pytest.mark.usefixtures("short_attempts")
    def test_a_receiver_that_never_answers(self) -> None:
        with silent() as receiver:
            outcome = send(receiver.url)
        assert outcome == Outcome(None, "The receiver took longer than 0.3 seconds.")

    @pytest.mark.usefixtures("short_attempts")
    def test_a_name_server_that_never_answers(self) -> None:
        async def never(_host: str, _port: int) -> Sequence[str]:
            await asyncio.Event().wait()
            return []

        outcome = send("http://hooks.example.com/", never)
        assert outcome.error == "The receiver took longer than 0.3 seconds."

    @pytest.mark.usefixtures("short_attempts")
    def test_a_receiver_that_answers_byte_by_byte(self) -> None:
        def drip(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            while True:  # until the sender goes away
                handler.wfile.write(b"x")
                time.sleep(0.02)

        with receiving(answer=drip) as receiver:
            outcome = send(receiver.url)
        assert outcome.error == "The receiver took longer than 0.3 seconds."

    @pytest.mark.usefixtures("short_attempts")
    def test_a_receiver_that_continues_for_ever(self) -> None:
        def encourage(handler: BaseHTTPRequestHandler) -> None:
            while True:
                handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                time.sleep(0.01)

        with receiving(answer=encourage) as receiver:
            outcome = send(receiver.url)
        assert outcome.error == "The receiver took longer than 0.3 seconds."

    @pytest.mark.usefixtures("short_attempts")
    def test_a_body_without_an_end_is_not_waited_for(self) -> None:
        def pour(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                handler.wfile.write(b"x" * 65_536)

        with receiving(answer=pour) as receiver:
            assert send(receiver.url) == Outcome(200)


class TestOdd:
    @pytest.mark.parametrize(
        "answer",
        [
            b"220 mail.example.com ESMTP\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000,
            b"\0" * 100,
            b"HTTP/1.1 200 OK\r\n\x1b: 1\r\n\r\n",
        ],
        ids=["mail", "long header", "zeros", "odd header"],
    )
    def test_a_receiver_that_does_not_speak_http(self, answer: bytes) -> None:
        def send_it(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(answer)

        with receiving(answer=send_it) as receiver:
            outcome = send(receiver.url)
        assert outcome.status_code is None
        assert "does not speak HTTP" in str(outcome.error)

    def test_a_receiver_that_hangs_up(self) -> None:
        with receiving(answer=lambda _: None) as receiver:
            assert "The receiver does not" in str(send(receiver.url).error)

    def test_a_port_without_a_receiver(self) -> None:
        with receiving() as receiver:
            url = receiver.url
        assert "does not answer" in str(send(url).error)
