"""Followers of a real API on PostgreSQL get every event once, over a restart."""

from __future__ import annotations

from pathlib import Path

from bench.followers import Load, run

MIB = 1 << 20


def test_every_follower_gets_every_event_once_in_order(postgres_url: str, tmp_path: Path) -> None:
    outcome = run(postgres_url, tmp_path, Load(50, jobs=5, events_per_second=100, seconds=4))
    assert outcome.followers == outcome.reconnected == 50
    assert outcome.events == 400 + 3 * 5  # queued, claimed, failed
    assert outcome.wrong == 0
    assert outcome.memory["at the end"] - outcome.memory["after it"] < 16 * MIB
    assert str(outcome).startswith("50 followers, 415 events, 0 followers wrong")
