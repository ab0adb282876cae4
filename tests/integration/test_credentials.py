"""Tenants' own credentials open private models and texts, for their own jobs alone.

The S3 server knows two identities: the installation's, and a tenant's. The hub shows some of its
repositories only to who has the right token.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.domain.credentials import NO_CREDENTIALS, Credentials, HubToken, S3Keys
from service.domain.spec.sources import HubData, HubModel, S3Data, S3Prefix
from service.errors import (
    DataNotFound,
    ModelNotFound,
    StorageCredentialsInvalid,
)
from service.inputs.models.files import ModelHeaders
from service.inputs.models.sources import check_model, fetch_model
from service.inputs.opening import HeldFiles
from service.inputs.texts.sources import check_data, fetch_data
from service.settings import Settings
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from tests.fixtures.hub import REVISION, HubServer
from tests.fixtures.storage import grant

PARAM = "calibration.data"
RIGHT, WRONG = "canary-right-token", "canary-wrong-token"
IDS = ("team-a", "team-b")


def hub_token(hub: HubServer, tenant: str, token: str) -> Credentials:
    return Credentials((HubToken(tenant, "hub", hub.endpoint, SecretStr(token)),))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestHub:
    MODEL = HubModel(source="hub", id="team-a/private", revision=REVISION)
    DATA = HubData(source="hub", id="team-a/texts", revision=REVISION)

    @pytest.fixture
    def settings(
        self, with_settings: Callable[..., Settings], hub: HubServer, model_folder: Path
    ) -> Settings:
        hub.add("model", self.MODEL.id, contents(model_folder))
        hub.add("dataset", self.DATA.id, {"a.txt": b"a text"})
        hub.tokens = {self.MODEL.id: {RIGHT}, self.DATA.id: {RIGHT}}
        return with_settings(hub_endpoint=hub.endpoint)

    def fetch(self, settings: Settings, credentials: Credentials) -> Path:
        return fetch_model(self.MODEL, settings, HeldFiles(settings.scratch_dir), credentials)

    def test_a_token_opens_what_is_private(
        self, settings: Settings, hub: HubServer, model_folder: Path
    ) -> None:
        mine = hub_token(hub, "team-a", RIGHT)
        assert isinstance(check_model(self.MODEL, settings, mine), ModelHeaders)
        assert contents(self.fetch(settings, mine)) == contents(model_folder)
        assert contents(fetch_data(self.DATA, settings, PARAM, mine).root) == {"a.txt": b"a text"}

    @pytest.mark.parametrize("credentials", ["none", "wrong", "of another hub"])
    def test_what_is_in_the_cache_is_not_for_another_tenant(
        self,
        settings: Settings,
        hub: HubServer,
        credentials: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", WRONG)
        mine = hub_token(hub, "team-a", RIGHT)
        self.fetch(settings, mine)
        fetch_data(self.DATA, settings, PARAM, mine)
        elsewhere = HubToken("team-b", "hub", "https://hub.test", SecretStr(RIGHT))
        theirs = {
            "none": NO_CREDENTIALS,
            "wrong": hub_token(hub, "team-b", WRONG),
            "of another hub": Credentials((elsewhere,)),
        }[credentials]
        for act in (
            lambda: check_model(self.MODEL, settings, theirs),
            lambda: self.fetch(settings, theirs),
        ):
            with pytest.raises(ModelNotFound) as refused:
                act()
            assert "canary" not in refused.value.detail
        with pytest.raises(DataNotFound):
            fetch_data(self.DATA, settings, PARAM, theirs)

    def test_each_tenant_with_a_token_has_its_own_copy_and_the_others_share_one(
        self, settings: Settings, hub: HubServer
    ) -> None:
        hub.tokens = {}
        folders = [
            self.fetch(settings, credentials)
            for credentials in (
                hub_token(hub, "team-a", RIGHT),
                hub_token(hub, "team-a", "rotated-token"),
                hub_token(hub, "team-b", RIGHT),
                NO_CREDENTIALS,
                NO_CREDENTIALS,
            )
        ]
        assert folders[0] == folders[1]
        assert folders[3] == folders[4]
        assert len(set(folders)) == 3
        assert hub.requests.count("model.safetensors") == 3

    def test_a_tenants_token_takes_the_place_of_the_environments(
        self, settings: Settings, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", RIGHT)
        assert check_model(self.MODEL, settings)
        with pytest.raises(ModelNotFound, match="not show it to the credential 'hub'"):
            check_model(self.MODEL, settings, hub_token(hub, "team-a", WRONG))


class TestS3:
    """Of two identities besides the installation's, each of which sees a bucket of its own."""

    @pytest.fixture
    def buckets(
        self,
        local_s3: LocalS3,
        s3_settings: Settings,
        model_folder: Path,
    ) -> dict[str, Credentials]:
        """By tenant, the keys of a bucket with a model and a text, for identities of this test."""
        made = {}
        for tenant in IDS:
            bucket = f"{tenant}-{secrets.token_hex(4)}"
            storage = ObjectStorage.from_settings(s3_settings, bucket)
            storage.create_bucket()
            for path in model_folder.iterdir():
                storage.put_bytes(f"models/tiny/{path.name}", path.read_bytes())
            storage.put_bytes("texts/a.txt", f"a text of {tenant}".encode())
            key, secret = f"{bucket}-key", f"canary-secret-of-{tenant}"
            grant(local_s3, key, secret, "Read,List", bucket=bucket)
            keys = S3Keys(tenant, "mine", (f"s3://{bucket}/",), SecretStr(key), SecretStr(secret))
            made[tenant] = Credentials((keys,))
        return made

    def test_keys_open_what_is_below_their_prefixes(
        self, s3_settings: Settings, buckets: dict[str, Credentials], model_folder: Path
    ) -> None:
        (keys,) = buckets["team-a"].held
        # The installation's own keys are wrong now.
        blind = s3_settings.model_copy(
            update={"s3_secret_access_key": SecretStr("wrong"), "s3_region": "eu-west-9"}
        )
        source = S3Prefix(source="s3", uri=f"{keys.places[0]}models/tiny")
        mine = buckets["team-a"]
        assert isinstance(check_model(source, blind, mine), ModelHeaders)
        fetched = fetch_model(source, blind, HeldFiles(blind.scratch_dir), mine)
        assert contents(fetched) == contents(model_folder)
        data = S3Data(source="s3", uri=f"{keys.places[0]}texts")
        check_data(data, blind, PARAM, mine)
        assert contents(fetch_data(data, blind, PARAM, mine).root) == {"a.txt": b"a text of team-a"}
        with pytest.raises(StorageCredentialsInvalid, match="the credentials for bucket"):
            check_model(source, blind)

    def test_what_is_in_the_cache_is_not_for_another_tenant(
        self, s3_settings: Settings, buckets: dict[str, Credentials]
    ) -> None:
        settings = s3_settings.model_copy(update={"s3_secret_access_key": SecretStr("wrong")})
        (mine,), (theirs,) = buckets["team-a"].held, buckets["team-b"].held
        assert isinstance(theirs, S3Keys)
        source = S3Data(source="s3", uri=f"{mine.places[0]}texts")
        fetch_data(source, settings, PARAM, buckets["team-a"])
        trespassing = S3Keys(
            theirs.tenant,
            "mine",
            mine.places,
            theirs.access_key_id,
            theirs.secret_access_key,
        )
        for credentials, whose in (
            (buckets["team-b"], "the credentials"),
            (Credentials((trespassing,)), "the credential 'mine'"),
        ):
            for act in (check_data, fetch_data):
                with pytest.raises(StorageCredentialsInvalid, match=f"refuses {whose} for") as no:
                    act(source, settings, PARAM, credentials)
                assert "canary" not in no.value.detail

    def test_the_copy_of_a_tenant_is_not_that_of_one_who_can_only_list(
        self, s3_settings: Settings, local_s3: LocalS3, buckets: dict[str, Credentials]
    ) -> None:
        (mine,) = buckets["team-a"].held
        bucket = mine.places[0].removeprefix("s3://").rstrip("/")
        grant(local_s3, f"{bucket}-lister", "canary-lister", "List", bucket=bucket)
        lister = S3Keys(
            "team-b",
            "lister",
            mine.places,
            SecretStr(f"{bucket}-lister"),
            SecretStr("canary-lister"),
        )
        source = S3Data(source="s3", uri=f"{mine.places[0]}texts")
        fetch_data(source, s3_settings, PARAM, buckets["team-a"])
        fetch_data(source, s3_settings, PARAM)  # the installation can read all buckets
        with pytest.raises(StorageCredentialsInvalid, match="the credential 'lister'"):
            fetch_data(source, s3_settings, PARAM, Credentials((lister,)))

    def test_keys_have_a_server_of_their_own(
        self, s3_settings: Settings, local_s3: LocalS3, buckets: dict[str, Credentials]
    ) -> None:
        (mine,) = buckets["team-a"].held
        assert isinstance(mine, S3Keys)
        elsewhere = s3_settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
        keys = S3Keys(
            "team-a",
            "mine",
            mine.prefixes,
            mine.access_key_id,
            mine.secret_access_key,
            endpoint=local_s3.endpoint_url,
        )
        source = S3Data(source="s3", uri=f"{mine.places[0]}texts")
        check_data(source, elsewhere, PARAM, Credentials((keys,)))
