"""Signatures agree with the reference implementation of the Standard Webhooks."""

from __future__ import annotations

from service.webhooks.signature import signed_headers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = '{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
"""Made of these by the Python package `standardwebhooks` 1.1.0."""


def test_the_reference_implementation_signs_the_same() -> None:
    assert signed_headers([SECRET], ID, TIMESTAMP, BODY) == {
        "webhook-id": ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": SIGNATURE,
    }


def test_two_secrets_make_two_signatures() -> None:
    other = "whsec_" + "A" * 32
    both = signed_headers([other, SECRET], ID, TIMESTAMP, BODY)["webhook-signature"].split(" ")
    assert len(set(both)) == 2
    assert both[1] == SIGNATURE


def test_every_part_of_a_message_is_signed() -> None:
    others = [
        signed_headers([SECRET], ID + "x", TIMESTAMP, BODY),
        signed_headers([SECRET], ID, TIMESTAMP + 1, BODY),
        signed_headers([SECRET], ID, TIMESTAMP, BODY + " "),
        signed_headers(["whsec_" + "A" * 32], ID, TIMESTAMP, BODY),
    ]
    assert SIGNATURE not in [other["webhook-signature"] for other in others]
