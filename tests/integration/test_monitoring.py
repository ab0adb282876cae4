"""A real Prometheus reads a running API: the rules load, and every query of the graphs is answered.

It takes some 10 seconds, and needs Debian's `prometheus`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.domain.job import DEFAULT_TENANT, Artifact, FileEntry
from service.domain.retry_policy import RetryPolicy
from service.domain.states import Step
from service.errors import Failure
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.store.store import Store
from tests.fixtures.composition import read_compose_file
from tests.fixtures.jobs import small_spec
from tests.fixtures.waiting import wait_until
from tests.integration.test_datasets import served

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
SERVICES = read_compose_file({})["services"]
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/eigenpress.json").read_text())
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = [
    target["expr"].replace("$__rate_interval", "1m")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
SCRAPE_SECONDS = 1


def installed(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        missing = pytest.fail if "CI" in os.environ else pytest.skip
        missing(f"Tests of monitoring need {name}: apt-get install prometheus")
    return path


@pytest.fixture
def api(s3_settings: Settings) -> Iterator[tuple[str, Store]]:
    with served(s3_settings) as url:
        store = Store(s3_settings.database)
        yield url.removesuffix("/v1/datasets"), store
        store.close()


@pytest.fixture
def prometheus(api: tuple[str, Store], tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus with our rules that reads the API."""
    target = api[0].removeprefix("http://")
    configuration = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": [str(MONITORING / "alerts.yml")],
        "scrape_configs": [
            {"job_name": "eigenpress", "static_configs": [{"targets": [target]}]},
        ],
    }
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    port = choose_port(0, "test")
    command = [
        installed("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={LOOPBACK}:{port}",
        "--log.level=error",
    ]
    with (
        subprocess.Popen(command, cwd=tmp_path) as process,
        httpx.Client(base_url=f"http://{LOOPBACK}:{port}", trust_env=False) as client,
    ):
        try:
            wait_until(lambda: answers(client))
            yield client
        finally:
            process.terminate()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def work(store: Store) -> None:
    """A job that is retried, publishes and succeeds, and one that fails."""
    users, attempts = store.users(DEFAULT_TENANT), store.attempts
    job = users.create(small_spec())
    assert store.claims.claim()
    lost = Failure("worker_lost", "A worker is gone.", None, True)
    attempts.renew(job.id, 1, -1.0)
    attempts.fail(job.id, 1, lost, RetryPolicy(5, 0.0, 0.0), only_if_lapsed=True)
    assert store.claims.claim()
    usage = {"texts": [{"text": "calibration", "tokens": 4096}]}
    attempts.record(job.id, 2, "texts.used", "Used.", usage)
    for step in (Step.CALIBRATE, Step.SOLVE):
        attempts.progress(job.id, 2, step, 0, 5, "things")
        attempts.progress(job.id, 2, step, 5, 5, "things")
    files = (FileEntry("a", 100, "0" * 64),)
    attempts.published(job.id, 2, 0, Artifact("keep-0.8", "jobs/x/", files))
    attempts.succeed(job.id, 2, {})
    failed = users.create(small_spec())
    assert store.claims.claim()
    broken = Failure("model_invalid", "No weights.", "model", False)
    attempts.fail(failed.id, 1, broken, RetryPolicy(5, 0.0, 0.0))


def test_every_query_of_the_graphs_and_alerts_is_answered(
    prometheus: httpx.Client, api: tuple[str, Store]
) -> None:
    url, store = api
    work(store)  # a counter's first value is no increase yet
    httpx.get(f"{url}/nowhere")

    def read_twice() -> bool:
        return any(
            float(each["value"][1]) >= 2 for each in ask(prometheus, "count_over_time(up[1m])")
        )

    wait_until(read_twice)
    work(store)
    store.users(DEFAULT_TENANT).create(small_spec())
    httpx.get(f"{url}/nowhere")
    before = ask(prometheus, "count_over_time(up[1m])")[0]["value"][1]
    wait_until(
        lambda: float(ask(prometheus, "count_over_time(up[1m])")[0]["value"][1]) > float(before) + 2
    )
    assert len(QUERIES) > 12
    for query in QUERIES:
        assert ask(prometheus, query), query
    rules = prometheus.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in RULES]
    for rule in RULES:
        ask(prometheus, rule["expr"])
    assert ask(prometheus, "max by (cause) (increase(eigenpress_failures_total[1m]))")


def test_the_files_are_as_prometheus_wants_them(api: tuple[str, Store]) -> None:
    promtool = installed("promtool")
    for command in (["rules", "alerts.yml"], ["config", "--syntax-only", "prometheus.yml"]):
        subprocess.run([promtool, "check", *command], cwd=MONITORING, check=True)
    text = httpx.get(f"{api[0]}/metrics").content
    found = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert found.returncode == 0, found


def test_prometheus_takes_the_job_for_ray_whose_nodes_have_the_port() -> None:
    text = (MONITORING / "prometheus.yml").read_text()
    *_, ray = yaml.safe_load(re.sub(r"^  # (?=[ -])", "  ", text, flags=re.M))["scrape_configs"]
    (discovery,) = ray["dns_sd_configs"]
    for name in discovery["names"]:
        assert f"--metrics-export-port={discovery['port']}" in SERVICES[name]["command"]
    checked = subprocess.run(
        [installed("promtool"), "check", "config", "--syntax-only", "/dev/stdin"],
        input=yaml.safe_dump({"scrape_configs": [ray]}),
        text=True,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked


def test_every_alert_is_explained() -> None:
    explained = (MONITORING.parents[1] / "docs" / "operations.md").read_text()
    for rule in RULES:
        assert f"| `{rule['alert']}` |" in explained
        assert rule["annotations"]["summary"].endswith(".")


def test_graphs_name_only_metrics_that_there_are(api: tuple[str, Store]) -> None:
    text = httpx.get(f"{api[0]}/metrics").text
    there = set(re.findall(r"^# TYPE (\w+)", text, re.M))
    for query in (*QUERIES, *(rule["expr"] for rule in RULES)):
        for name in re.findall(r"eigenpress_\w+", query):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            assert {name, base, name.removesuffix("_total")} & there, name
