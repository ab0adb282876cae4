"""Sends the messages of webhooks: signed, to allowed addresses, with retries."""
