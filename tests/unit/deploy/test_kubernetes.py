"""deploy/kubernetes is valid and agrees with the product, the images and docker-compose.yml."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
import yaml

from api.routes import health, metrics
from service.cluster.ray_jobs import TOKEN_MODE, TOKEN_VARIABLE
from service.domain.placement import Placement, Resources, plan_placement
from service.settings import PREFIX, SECRETS_VARIABLE, Settings
from tests.fixtures.composition import read_compose_file
from tests.fixtures.manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Manifest,
    containers,
    only,
    pod_templates,
    read_manifests,
)

SCHEMAS: dict[str, Any] = json.loads(
    (ROOT / "tests" / "fixtures" / "kubernetes_schemas.json").read_text()
)
COMPOSE: dict[str, Any] = read_compose_file({})["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
NAMES = ("cpu", "gpu")
RENDERED = {name: read_manifests(OVERLAYS / name) for name in NAMES}
MONITORING = read_manifests(KUBERNETES / "monitoring")
RAY_MONITORING = read_manifests(KUBERNETES / "monitoring" / "ray")
ALERTS = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())

both = pytest.mark.parametrize("manifests", RENDERED.values(), ids=NAMES)


def problems(manifest: Manifest) -> list[str]:
    """What Kubernetes or KubeRay would not take, nor know."""
    (name,) = [name for name in SCHEMAS["$defs"] if name.endswith(f".{manifest['kind']}")]
    schema = SCHEMAS | {"$ref": f"#/$defs/{name}"}
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize(
    "manifests",
    [*RENDERED.values(), MONITORING, RAY_MONITORING],
    ids=[*NAMES, "monitoring", "monitoring/ray"],
)
def test_manifests_are_valid(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        assert not problems(manifest), manifest["metadata"]["name"]


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("Deployment", "livenessProbe", "livenesProbe"),
        ("Deployment", '"containerPort": 8400', '"containerPort": "http"'),
        ("NetworkPolicy", "podSelector", "selector"),
        ("RayCluster", "maxReplicas", "maximumReplicas"),
        ("RayCluster", '"num-cpus": "0"', '"num-cpus": 0'),
        ("RayCluster", "volumeMounts", "mounts"),
        ("ServiceMonitor", "jobLabel", "jobLable"),
        ("ServiceMonitor", '"port": "http"', '"port": 8400'),
        ("PodMonitor", "podMetricsEndpoints", "endpoints"),
        ("PodMonitor", '"port": "metrics"', '"port": 8080'),
        ("PodMonitor", "targetLabel", "label"),
        ("PrometheusRule", "annotations", "annotation"),
        ("PrometheusRule", '"10m"', '"10 minutes"'),
    ],
)
def test_mistakes_are_noticed(kind: str, old: str, new: str) -> None:
    manifests = [*RENDERED["gpu"], *MONITORING, *RAY_MONITORING]
    texts = [json.dumps(each) for each in manifests if each["kind"] == kind]
    (text, *_) = [text for text in texts if old in text]
    assert problems(json.loads(text.replace(old, new)))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["overlays/gpu", "monitoring", "monitoring/ray"])
def test_kustomize_reads_a_folder_as_these_tests_do(folder: str) -> None:
    command = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    by_name = {
        (each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(rendered)
    }
    ours = {
        (each["kind"], each["metadata"]["name"]): each
        for each in read_manifests(KUBERNETES / folder)
    }
    assert by_name == ours


@both
def test_only_known_settings_are_set_and_their_values_are_taken(manifests: list[Manifest]) -> None:
    given = dict(only(manifests, "ConfigMap", "eigenpress-settings")["data"])
    for container in containers(manifests):
        given |= {entry["name"]: entry.get("value") for entry in container["env"]}
    given.pop(SECRETS_VARIABLE)
    ours = {name: value for name, value in given.items() if name.startswith(PREFIX)}
    Settings.model_validate(
        {name.removeprefix(PREFIX).lower(): value for name, value in ours.items()}
    )


@both
def test_every_process_reads_the_settings_then_the_site_and_the_token(
    manifests: list[Manifest],
) -> None:
    ray = only(manifests, "RayCluster")["spec"]
    assert ray["authOptions"] == {"mode": "token", "secretName": "eigenpress"}  # for its pods
    for container in containers(manifests):
        sources = [each["configMapRef"]["name"] for each in container["envFrom"]]
        assert sources == ["eigenpress-settings", "eigenpress-site"]
        if not container["name"].startswith("ray-"):
            env = {entry["name"]: entry for entry in container["env"]}
            key = env[TOKEN_VARIABLE]["valueFrom"]["secretKeyRef"]
            assert key == {"name": "eigenpress", "key": "auth_token"}
            assert {name: env[name]["value"] for name in TOKEN_MODE} == TOKEN_MODE


@both
def test_secrets_are_files_where_the_settings_look(manifests: list[Manifest]) -> None:
    folder = only(manifests, "ConfigMap", "eigenpress-settings")["data"][SECRETS_VARIABLE]
    for container in containers(manifests):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["secrets"] == folder
        assert mounts["data"] == "/var/lib/eigenpress"
    for template in pod_templates(manifests):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert secrets_of(volumes["secrets"])[0] == "eigenpress"
        name = template["spec"]["containers"][0]["name"]
        if name.startswith("ray-"):
            keys = {item["key"] for item in volumes["secrets"]["secret"]["items"]}
            assert "eigenpress_s3_secret_access_key" in keys
            assert "eigenpress_encryption_key" not in keys
            assert ("eigenpress_credentials_key" in keys) is (name == "ray-head")
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]


@both
@pytest.mark.parametrize("secret", ["eigenpress-admin", "eigenpress-metrics"])
def test_only_the_api_gets_the_administrators_key_and_the_metrics_token(
    manifests: list[Manifest], secret: str
) -> None:
    getting = [
        {container["name"] for container in template["spec"]["containers"]}
        for template in pod_templates(manifests)
        for volume in template["spec"]["volumes"]
        if volume["name"] == "secrets" and secret in secrets_of(volume)
    ]
    assert getting == [{"api"}]


def secrets_of(volume: dict[str, Any]) -> list[str]:
    """The names of the secrets that the volume holds."""
    if "secret" in volume:
        return [volume["secret"]["secretName"]]
    return [source["secret"]["name"] for source in volume["projected"]["sources"]]


@both
def test_images_and_commands_are_those_of_compose(manifests: list[Manifest]) -> None:
    services = {"api": "api", "dispatcher": "dispatcher", "migrate": "migrate"}
    services |= {"ray-head": "ray-head", "ray-worker": "ray-worker"}
    for container in containers(manifests):
        service = COMPOSE[services[container["name"]]]
        assert container["image"] == service["image"]
        if "command" in container:
            command = [word for word in service["command"] if word != "--create-bucket"]
            assert container["command"] == command


@pytest.mark.parametrize("name", NAMES)
def test_overlays_name_each_image_and_its_version(name: str) -> None:
    kustomization = yaml.safe_load((OVERLAYS / name / "kustomization.yaml").read_text())
    named = {f"{image['newName']}:{image['newTag']}" for image in kustomization["images"]}
    assert named == {container["image"] for container in containers(RENDERED[name])}


def test_the_api_is_probed_by_what_needs_nothing_else() -> None:
    manifests = RENDERED["cpu"]
    (container,) = only(manifests, "Deployment", "eigenpress-api")["spec"]["template"]["spec"][
        "containers"
    ]
    (port,) = only(manifests, "Service", "eigenpress-api")["spec"]["ports"]
    assert port["port"] == Settings.model_fields["api_port"].default
    assert container["ports"] == [{"name": port["targetPort"], "containerPort": port["port"]}]
    assert container["command"][-1] == str(port["port"])
    path = next(route.path for route in health.router.routes if route.name == "healthz")  # type: ignore[attr-defined]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container[kind]["httpGet"]
        assert (get["path"], get["port"]) == (path, port["name"])
        assert get["httpHeaders"] == [{"name": "Host", "value": "eigenpress-api"}]


def test_the_dispatcher_is_probed_by_its_heartbeat() -> None:
    deployment = only(RENDERED["cpu"], "Deployment", "eigenpress-dispatcher")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    _, script = COMPOSE["dispatcher"]["healthcheck"]["test"]
    assert container["livenessProbe"]["exec"]["command"] == ["sh", "-c", script]
    variable = "EIGENPRESS_DISPATCHER_HEARTBEAT"
    (file,) = [entry["value"] for entry in container["env"] if entry["name"] == variable]
    assert f" {file} " in script


@both
def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    (uid,) = re.findall(r"useradd --uid (\d+)", DOCKERFILE)
    accounts = {each["metadata"]["name"] for each in manifests if each["kind"] == "ServiceAccount"}
    for template in pod_templates(manifests):
        spec, security = template["spec"], template["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] == security["fsGroup"] == int(uid)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["serviceAccountName"] in accounts
        is_head = template["metadata"]["labels"]["app.kubernetes.io/component"] == "ray-head"
        assert is_head or spec["automountServiceAccountToken"] is False
        # A service eigenpress-api would set EIGENPRESS_API_PORT=tcp://..., which is a setting.
        assert spec["enableServiceLinks"] is False
    ray = only(manifests, "RayCluster")["spec"]
    autoscaler = ray.get("autoscalerOptions")
    for container in [*containers(manifests), *([autoscaler] if autoscaler else [])]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@both
def test_ray_is_of_the_release_that_the_images_have(manifests: list[Manifest]) -> None:
    ray = only(manifests, "RayCluster")["spec"]
    (release,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert ray["rayVersion"] == release


@both
def test_ray_is_started_as_by_compose(manifests: list[Manifest]) -> None:
    ray = only(manifests, "RayCluster")["spec"]
    groups = [(ray["headGroupSpec"], "ray-head")]
    groups += [(group, "ray-worker") for group in ray["workerGroupSpecs"]]
    by_kuberay = {"head", "block", "address", "port", "dashboard-host", "dashboard-port"}
    by_kuberay |= {"metrics-export-port"}
    for group, service in groups:
        options = [word.removeprefix("--").split("=") for word in COMPOSE[service]["command"][2:]]
        expected = {name: (value or ["true"])[0] for name, *value in options}
        assert group["rayStartParams"] == {
            name: value for name, value in expected.items() if name not in by_kuberay
        }
        (container,) = group["template"]["spec"]["containers"]
        given = only(manifests, "ConfigMap", "eigenpress-settings")["data"]
        ours = given | {entry["name"]: entry.get("value") for entry in container["env"]}
        for name, value in COMPOSE[service]["environment"].items():
            if name.startswith("RAY_") and "AUTH" not in name:
                assert ours[name] == value


def nodes(group: Manifest, replicas: int) -> list[Resources]:
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    resources = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
    return [resources] * replicas


def most_jobs(manifests: list[Manifest]) -> int:
    settings = only(manifests, "ConfigMap", "eigenpress-settings")["data"]
    return int(settings["EIGENPRESS_MAX_RUNNING_JOBS"])


def test_on_gpus_the_autoscaler_has_a_gpu_for_each_job_that_may_run() -> None:
    ray, jobs = only(RENDERED["gpu"], "RayCluster")["spec"], most_jobs(RENDERED["gpu"])
    (group,) = ray["workerGroupSpecs"]
    assert ray["enableInTreeAutoscaling"]
    assert 1 <= group["minReplicas"] < group["maxReplicas"]  # a job's driver waits for a first node
    assert "replicas" not in group  # an upgrade would set them back
    for replicas in (group["minReplicas"], group["maxReplicas"]):
        placement = plan_placement(None, nodes(group, replicas), jobs)
        assert placement == Placement(workers=1, cpus=8, gpus=1)
    assert jobs * placement.workers == sum(
        int(node["GPU"]) for node in nodes(group, group["maxReplicas"])
    )


def test_on_cpus_the_number_of_nodes_is_fixed_and_a_job_uses_them_all() -> None:
    ray, jobs = only(RENDERED["cpu"], "RayCluster")["spec"], most_jobs(RENDERED["cpu"])
    (group,) = ray["workerGroupSpecs"]
    assert "enableInTreeAutoscaling" not in ray
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    placement = plan_placement(None, nodes(group, group["replicas"]), jobs)
    assert placement.workers * placement.cpus == 8 * group["replicas"]


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    expressions = [
        {"key": key, "operator": "In", "values": [value]}
        for key, value in selector.get("matchLabels", {}).items()
    ] + selector.get("matchExpressions", [])
    assert {each["operator"] for each in expressions} == {"In"}
    return all(labels.get(each["key"]) in each["values"] for each in expressions)


def labels_of(component: str) -> dict[str, str]:
    (found,) = [
        template["metadata"]["labels"]
        for template in pod_templates(RENDERED["gpu"])
        if template["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    return dict(found)


def may_reach(
    source: dict[str, Manifest], component: str, port: int, further: Sequence[Manifest] = ()
) -> bool:
    """Whether a policy lets a source (its pod's labels or its namespace's) reach a pod's port."""
    manifests = [*RENDERED["gpu"], *further]
    policies = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]
    chosen = [each for each in policies if matches(each["podSelector"], labels_of(component))]
    assert chosen, "without a policy, everybody reaches it"
    for rule in (rule for policy in chosen for rule in policy.get("ingress", [])):
        ports = [each["port"] for each in rule.get("ports", [])]
        for peer in rule["from"]:
            (kind,) = peer
            if kind in source and matches(peer[kind], source[kind]) and port in (ports or [port]):
                return True
    return False


API, DISPATCHER, HEAD, WORKER = (
    {"podSelector": labels_of(name)} for name in ("api", "dispatcher", "ray-head", "ray-worker")
)
STRANGER = {"podSelector": {"app": "stranger"}, "namespaceSelector": {"name": "eigenpress"}}
GATEWAY = {"namespaceSelector": {"eigenpress-client": "true"}}


@pytest.mark.parametrize(
    ("source", "component", "port", "reached"),
    [
        (GATEWAY, "api", 8400, True),
        (STRANGER, "api", 8400, False),
        (WORKER, "api", 8400, False),
        (API, "ray-head", 8265, True),
        (DISPATCHER, "ray-head", 8265, True),
        (GATEWAY, "ray-head", 8265, False),
        (STRANGER, "ray-head", 8265, False),
        (API, "ray-head", 6379, False),
        (DISPATCHER, "ray-head", 6379, False),
        (WORKER, "ray-head", 6379, True),
        (HEAD, "ray-worker", 20000, True),
        (WORKER, "ray-worker", 20000, True),
        (DISPATCHER, "ray-worker", 20000, False),
        (STRANGER, "ray-worker", 20000, False),
        (API, "dispatcher", 8400, False),
    ],
)
def test_who_reaches_what(
    source: dict[str, Manifest], component: str, port: int, reached: bool
) -> None:
    assert may_reach(source, component, port) is reached


@both
def test_what_selects_pods_selects_those_of_its_name(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        component = manifest["metadata"].get("labels", {}).get("app.kubernetes.io/component", "")
        if manifest["kind"] == "Service":
            assert matches({"matchLabels": manifest["spec"]["selector"]}, labels_of(component))
        elif manifest["kind"] in ("PodDisruptionBudget", "Deployment"):
            assert matches(manifest["spec"]["selector"], labels_of(component))


@both
def test_ray_is_addressed_by_the_service_that_kuberay_makes(manifests: list[Manifest]) -> None:
    cluster = only(manifests, "RayCluster")
    settings = only(manifests, "ConfigMap", "eigenpress-settings")["data"]
    (head,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    service = f"{cluster['metadata']['name']}-head-svc"
    assert settings["EIGENPRESS_RAY_ADDRESS"] == f"http://{service}:{ports['dashboard']}"
    assert ports == {"gcs": 6379, "dashboard": 8265}


class TestMonitoring:
    def test_prometheus_reads_the_pods_of_the_api_with_its_token(self) -> None:
        monitor = only(MONITORING, "ServiceMonitor", "eigenpress-api")["spec"]
        (endpoint,) = monitor["endpoints"]
        (service,) = (
            each
            for each in RENDERED["gpu"]
            if each["kind"] == "Service"
            and matches(monitor["selector"], each["metadata"]["labels"])
        )
        assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
        assert endpoint["path"] in [route.path for route in metrics.router.routes]  # type: ignore[attr-defined]
        expressions = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
        named = set(re.findall('job="(.*?)"', "\n".join(expressions)))
        assert named == {service["metadata"]["labels"][monitor["jobLabel"]]}

    def test_its_token_is_the_setting_of_the_api_and_may_be_missing(self) -> None:
        monitor = only(MONITORING, "ServiceMonitor", "eigenpress-api")["spec"]
        token = monitor["endpoints"][0]["authorization"]["credentials"]
        assert token["key"] == f"{PREFIX}METRICS_TOKEN".lower()
        deployment = only(RENDERED["gpu"], "Deployment", "eigenpress-api")
        (volume,) = (
            each
            for each in deployment["spec"]["template"]["spec"]["volumes"]
            if each["name"] == "secrets"
        )
        source = {"secret": {"name": token["name"], "optional": True}}
        assert source in volume["projected"]["sources"]

    @pytest.mark.parametrize("component", ["ray-head", "ray-worker"])
    def test_prometheus_reads_every_node_of_ray_at_the_port_of_kuberay(
        self, component: str
    ) -> None:
        monitor = only(RAY_MONITORING, "PodMonitor", "eigenpress-ray")["spec"]
        assert matches(monitor["selector"], labels_of(component))
        (endpoint,) = monitor["podMetricsEndpoints"]
        assert endpoint["port"] == "metrics"  # KubeRay's name of port 8080
        assert "authorization" not in endpoint
        assert may_reach(GATEWAY, component, 8080, RAY_MONITORING)
        assert not may_reach(GATEWAY, component, 8080)
        assert not may_reach(GATEWAY, component, 8265, RAY_MONITORING)
        assert not may_reach(STRANGER, component, 8080, RAY_MONITORING)

    def test_ray_is_not_taken_for_the_api(self) -> None:
        monitor = only(RAY_MONITORING, "PodMonitor", "eigenpress-ray")["spec"]
        for component in ("api", "dispatcher"):
            assert not matches(monitor["selector"], labels_of(component))
        (job,) = monitor["podMetricsEndpoints"][0]["relabelings"]
        assert job == {"targetLabel": "job", "replacement": "ray"}
        compose = (ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text()
        assert "# - job_name: ray\n" in compose

    def test_the_alerts_are_those_of_compose(self) -> None:
        assert only(MONITORING, "PrometheusRule")["spec"] == ALERTS
