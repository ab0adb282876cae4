"""What the page of a job says of its artifacts."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from service.domain.job import FileEntry
from service.errors import StorageUnavailable
from tests.unit.api.conftest import OfflineStorage
from tests.unit.api.pages.job.conftest import WEIGHTS, Succeeded
from tests.unit.service.report.test_view import a_report, layer


def test_the_page_has_them_without_asking_the_bucket(
    client: TestClient, storage: OfflineStorage, succeeded: Succeeded
) -> None:
    job_id = succeeded()
    storage.trouble = StorageUnavailable()
    html = client.get(f"/jobs/{job_id}").text
    assert f'href="/v1/jobs/{job_id}/artifacts/keep-0.8/files/model.safetensors" download' in html
    assert f'title="{WEIGHTS.sha256}">{WEIGHTS.sha256}<' in html
    assert "1.2 MB in 1 file<" in html
    assert f"eigenpress download --url http://testserver {job_id} keep-0.8<" in html
    assert f'hx-get="/jobs/{job_id}/artifacts" hx-trigger="load"' in html


def test_the_bucket_adds_the_manifest(client: TestClient, succeeded: Succeeded) -> None:
    job_id = succeeded()
    html = client.get(f"/jobs/{job_id}/artifacts").text
    address = f"/v1/jobs/{job_id}/artifacts/keep-0.8/files/manifest.json"
    assert f'href="{address}" download' in html
    assert client.get(address, follow_redirects=False).status_code == 302


def test_one_whose_files_are_gone_says_so_and_offers_nothing(
    client: TestClient, storage: OfflineStorage, succeeded: Succeeded
) -> None:
    job_id = succeeded()
    storage.objects.clear()
    html = client.get(f"/jobs/{job_id}/artifacts").text
    assert "object_missing" in html
    assert "download" not in html
    assert client.get(f"/v1/jobs/{job_id}/artifacts").status_code == 410


def test_a_bucket_that_is_away_leaves_the_list(
    client: TestClient, storage: OfflineStorage, succeeded: Succeeded
) -> None:
    job_id = succeeded()
    storage.trouble = StorageUnavailable("The S3 server does not answer.")
    html = client.get(f"/jobs/{job_id}/artifacts").text
    assert "The S3 server does not answer." in html
    assert "model.safetensors" in html


def test_it_says_how_to_load_and_to_serve_each(client: TestClient, succeeded: Succeeded) -> None:
    html = client.get(f"/jobs/{succeeded()}").text
    assert "from_pretrained(&#34;./keep-0.8&#34;, trust_remote_code=True)" in html
    assert "vllm serve ./keep-0.8 --trust-remote-code<" in html
    report = a_report(name="keep-0.8")
    report["targets"][0] |= {"precisions": "transformers", "layers": [layer("x", bits=3)]}
    html = client.get(f"/jobs/{succeeded(report)}").text
    assert "Install <code>compressed-tensors loguru psutil</code>" in html
    assert "It is not for vLLM: its layers have 3 bits, and" in html
    assert "<code>precisions: vllm</code>" in html


def test_an_artifact_that_the_report_lacks_has_only_its_files(
    client: TestClient, succeeded: Succeeded
) -> None:
    html = client.get(f"/jobs/{succeeded(a_report(name='other'))}").text
    assert "model.safetensors" in html
    assert "from_pretrained" not in html


@pytest.mark.parametrize("path", ["a b.json", "ü#?&%.txt", "folder/x.txt", '"><b>.txt'])
def test_any_file_can_be_downloaded(client: TestClient, succeeded: Succeeded, path: str) -> None:
    job_id = succeeded(files=(FileEntry(path, 1, "cd" * 32),))
    html = client.get(f"/jobs/{job_id}").text
    (address,) = re.findall(r'href="([^"]+/files/[^"]+)" download', html)
    assert address.endswith("/files/" + quote(path))
    assert client.get(address, follow_redirects=False).status_code == 302
