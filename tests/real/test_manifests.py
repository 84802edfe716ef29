"""The Kubernetes manifests, compose.yaml and the nginx configuration, each through the tools that would take it.

kubectl renders, kubernetes-validate knows the schemas of Kubernetes, the schemas of custom resources are read from
../shared/schemas, checkov looks for what is unsafe, podman starts what the demo overlay describes.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from service.config import OWN_PATHS
from service.config import load as load_settings
from tests.real import images, nginx
from tests.support import bodies, raw_http
from tests.support.server_process import PROJECT

yaml = pytest.importorskip("yaml")

DEPLOY = PROJECT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
OPTIONAL = ("ingress", "model-volume", "tracing")  # components that no overlay takes by itself
VERSION = "1.35"
CRDS = PROJECT.parent / "shared" / "schemas"
CRD_FILES = {
    "ScaledObject": "keda_scaledobjects_crd.yaml",
    "ServiceMonitor": "prometheus_operator_servicemonitors_crd.yaml",
    "PrometheusRule": "prometheus_operator_prometheusrules_crd.yaml",
    "ServingRuntime": "kserve_servingruntimes_crd.yaml",
    "InferenceService": "kserve_inferenceservices_crd.yaml",
}

Resource = dict[str, Any]


def tool(name: str) -> str:
    """The command of this environment, else of the machine; skips where there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"no {name}")
    return found


def run(*command: str | Path) -> str:
    """Standard output and error of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@lru_cache
def rendered(folder: Path) -> str:
    return run(tool("kubectl"), "kustomize", folder)


def resources(folder: Path) -> list[Resource]:
    return list(yaml.safe_load_all(rendered(folder)))


def overlay(name: str) -> Path:
    return KUBERNETES / "overlays" / name


def of_kind(name: str, kind: str) -> Resource:
    (found,) = [each for each in resources(overlay(name)) if each["kind"] == kind]
    return found


def container_of(name: str) -> Resource:
    (container,) = of_kind(name, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An overlay of the demo with every component that the overlays leave to choose."""
    folder = KUBERNETES / "overlays" / "demo"
    root = tmp_path_factory.mktemp("overlay")
    link = root / "kubernetes"
    shutil.copytree(KUBERNETES, link)
    components = "".join(f"  - ../../components/{name}\n" for name in OPTIONAL)
    made = link / "overlays" / "everything"
    made.mkdir()
    (made / "kustomization.yaml").write_text((folder / "kustomization.yaml").read_text() + components)
    return made


@pytest.fixture(params=[*OVERLAYS, "everything"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("everything") if request.param == "everything" else overlay(request.param)


def test_every_component_is_in_some_overlay_that_is_tested() -> None:
    taken = {
        Path(component).name
        for name in OVERLAYS
        for component in yaml.safe_load((overlay(name) / "kustomization.yaml").read_text())["components"]
    }
    assert taken | set(OPTIONAL) == {path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml")}


class TestSchemas:
    def test_kubernetes_resources_are_valid_without_a_warning(self, folder: Path, tmp_path: Path) -> None:
        known = [each for each in resources(folder) if each["kind"] not in CRD_FILES]
        file = tmp_path / "rendered.yaml"
        file.write_text(yaml.safe_dump_all(known))
        said = run(tool("kubernetes-validate"), "--strict", "-k", VERSION, file)
        assert "WARN" not in said, said
        assert said.count("passed for resource") == len(known)

    def test_custom_resources_are_valid(self, folder: Path) -> None:
        jsonschema = pytest.importorskip("jsonschema")
        if not CRDS.is_dir():
            pytest.skip(f"no schemas of custom resources at {CRDS}")
        for each in resources(folder):
            if each["kind"] in CRD_FILES:
                jsonschema.validate(each, crd_schema(each["kind"], each["apiVersion"]))

    def test_a_field_that_does_not_exist_is_found(self) -> None:
        jsonschema = pytest.importorskip("jsonschema")
        if not CRDS.is_dir():
            pytest.skip(f"no schemas of custom resources at {CRDS}")
        wrong = of_kind("cpu", "ServiceMonitor")
        wrong["spec"]["endpoints"][0]["intervall"] = "15s"
        with pytest.raises(jsonschema.ValidationError, match="intervall"):
            jsonschema.validate(wrong, crd_schema(wrong["kind"], wrong["apiVersion"]))

    @pytest.mark.parametrize("path", sorted(KUBERNETES.glob("kserve/*.yaml")), ids=lambda path: path.stem)
    def test_kserve_resources_are_valid(self, path: Path) -> None:
        jsonschema = pytest.importorskip("jsonschema")
        if not CRDS.is_dir():
            pytest.skip(f"no schemas of custom resources at {CRDS}")
        each = yaml.safe_load(path.read_text())
        schema = crd_schema(each["kind"], each["apiVersion"])
        jsonschema.validate(each, schema)
        each["spec"]["replicaz"] = 1
        with pytest.raises(jsonschema.ValidationError, match="replicaz"):
            jsonschema.validate(each, schema)

    def test_kserve_runtime_and_service_fit_each_other_and_the_base(self) -> None:
        runtime, service = (
            yaml.safe_load((KUBERNETES / "kserve" / f"{name}.yaml").read_text())
            for name in ("servingruntime", "inferenceservice")
        )
        model = service["spec"]["predictor"]["model"]
        assert model["runtime"] == runtime["metadata"]["name"]
        assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}
        assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
        (container,) = runtime["spec"]["containers"]
        assert container["resources"] == container_of("cpu")["resources"]
        settings = {each["name"]: each["value"] for each in container["env"]}
        assert load_settings(environment=settings).repository.path == Path("/mnt/models")

    def test_compose_file_is_valid(self) -> None:
        run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")

    def test_files_that_compose_mounts_exist(self) -> None:
        services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
        mounted = [volume.split(":")[0] for each in services.values() for volume in each.get("volumes", [])]
        files = [DEPLOY / path for path in mounted if path.startswith("./")]
        assert len(files) >= 6
        assert [str(path) for path in files if not path.exists()] == []


def crd_schema(kind: str, api_version: str) -> Resource:
    definition = yaml.safe_load((CRDS / CRD_FILES[kind]).read_text())
    (version,) = [
        each
        for each in definition["spec"]["versions"]
        if api_version == f"{definition['spec']['group']}/{each['name']}"
    ]
    schema: Resource = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def strict(schema: Any) -> Any:
    """OpenAPI as Kubernetes means it, in JSON schema: unknown fields are errors, integers may be written as strings."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    if "(?i)" in str(made.get("pattern", "")):  # Go takes flags anywhere, Python only in front
        made["pattern"] = "(?i)" + made["pattern"].replace("(?i)", "")
    if made.get("nullable") is True and "type" in made:
        made["type"] = [*([made["type"]] if isinstance(made["type"], str) else made["type"]), "null"]
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def test_checkov_finds_nothing_but_what_is_left_out_with_a_reason(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(rendered(folder))
    configuration = KUBERNETES / "checkov.yaml"
    report = json.loads(run(tool("checkov"), "--config-file", configuration, "-f", file, "-o", "json"))
    assert report["summary"]["passed"] > 50
    assert report["summary"]["failed"] == 0
    for line in configuration.read_text().splitlines():
        if line.strip().startswith("- CKV"):
            assert len(line.partition("#")[2]) > 20, f"{line}: without a reason"


def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    if nginx.COMMAND is None:
        pytest.skip("no nginx")
    main = nginx.rendered(tmp_path, nginx.free_port(), [nginx.free_port(), nginx.free_port()])
    said = run(*nginx.arguments(main), "-t")
    assert "successful" in said
    assert "[warn]" not in said


class TestTheDeployment:
    """What a reviewer would look for in the rendered pod."""

    @pytest.mark.parametrize("name", OVERLAYS)
    def test_pod_holds_no_rights(self, name: str) -> None:
        pod = of_kind(name, "Deployment")["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"] == container["resources"]["limits"]

    @pytest.mark.parametrize("name", OVERLAYS)
    def test_models_are_mounted_read_only_where_they_are_served(self, name: str) -> None:
        mounts = [mount for mount in container_of(name)["volumeMounts"] if mount["name"] == "models"]
        assert [mount.get("readOnly") for mount in mounts] == ([] if name == "demo" else [True])

    @pytest.mark.parametrize("name", OVERLAYS)
    def test_one_autoscaler_or_a_fixed_number_of_replicas(self, name: str) -> None:
        kinds = [each["kind"] for each in resources(overlay(name))]
        scalers = kinds.count("HorizontalPodAutoscaler") + kinds.count("ScaledObject")
        fixed = "replicas" in of_kind(name, "Deployment")["spec"]
        assert scalers + fixed == 1

    def test_gpu_overlay_asks_for_one(self) -> None:
        pod = of_kind("gpu", "Deployment")["spec"]["template"]["spec"]
        container = container_of("gpu")
        assert container["image"] == "fovea:gpu"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert pod["runtimeClassName"] == "nvidia"
        assert [metric["type"] for metric in of_kind("gpu", "HorizontalPodAutoscaler")["spec"]["metrics"]] == ["Pods"]

    def test_ingress_and_service_know_the_same_prefix(self, everything: Path) -> None:
        made = {each["kind"]: each for each in resources(everything)}
        prefix = made["ConfigMap"]["data"]["FOVEA_SERVER__ROOT_PATH"]
        paths = [each["path"] for each in made["Ingress"]["spec"]["rules"][0]["http"]["paths"]]
        assert [path for path in paths if not path.startswith(f"{prefix}/")] == []

    def test_ingress_publishes_what_is_for_clients_and_nothing_for_the_cluster(self, everything: Path) -> None:
        """By the first part of every path that the service has."""
        (ingress,) = [each for each in resources(everything) if each["kind"] == "Ingress"]
        paths = [each["path"] for each in ingress["spec"]["rules"][0]["http"]["paths"]]
        public = {path.removeprefix("/vision/") for path in paths}
        assert public == (OWN_PATHS | {""}) - {"metrics", "livez", "startupz"}  # "": the page


class TestScalingMetric:
    """The recording rule, the adapter, the HPA and KEDA must speak of the same figure."""

    RULE = "fovea:replica_queue_seconds:mean1m"

    def test_rule_is_recorded(self) -> None:
        groups = yaml.safe_load((DEPLOY / "monitoring" / "rules.yml").read_text())["groups"]
        assert self.RULE in {rule.get("record") for group in groups for rule in group["rules"]}

    def test_adapter_offers_it_as_what_the_hpa_asks_for(self) -> None:
        (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter-values.yaml").read_text())["rules"]["custom"]
        assert f'"{self.RULE}"' in rule["seriesQuery"]
        pods = [metric["pods"] for metric in of_kind("cpu", "HorizontalPodAutoscaler")["spec"]["metrics"][:1]]
        assert [metric["metric"]["name"] for metric in pods] == [rule["name"]["as"]]

    def test_keda_scales_at_the_same_threshold_and_pace(self) -> None:
        hpa = of_kind("cpu", "HorizontalPodAutoscaler")["spec"]
        keda = of_kind("keda", "ScaledObject")["spec"]
        prometheus, cpu = keda["triggers"]
        assert self.RULE in prometheus["metadata"]["query"]
        milliseconds = hpa["metrics"][0]["pods"]["target"]["averageValue"].removesuffix("m")
        assert float(prometheus["metadata"]["threshold"]) == int(milliseconds) / 1000
        assert int(cpu["metadata"]["value"]) == hpa["metrics"][1]["resource"]["target"]["averageUtilization"]
        assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
        assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])


class TestModelSync:
    """The init container's own arguments, by the rclone of this machine, as the web server's client."""

    def test_copy_over_http_is_the_whole_repository_and_nothing_hidden(self, tmp_path: Path) -> None:
        rclone = tool("rclone")
        source, models = tmp_path / "source" / "models", tmp_path / "models"
        shutil.copytree(PROJECT / "model_repo", source, ignore=shutil.ignore_patterns("recipes"))
        (source / ".unfinished").mkdir()
        (source / ".unfinished" / "model.onnx").write_bytes(b"half")
        models.mkdir()
        port = nginx.free_port()
        (init,) = of_kind("cpu", "Deployment")["spec"]["template"]["spec"]["initContainers"]
        placed = [{"$(MODEL_SOURCE)": "models:models", "/models": str(models)}.get(each, each) for each in init["args"]]
        environment = {
            "RCLONE_CONFIG_MODELS_TYPE": "http",
            "RCLONE_CONFIG_MODELS_URL": f"http://127.0.0.1:{port}/",
            "HOME": "/nonexistent",
        }
        server = subprocess.Popen(
            [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(source.parent)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            done = subprocess.run(
                [rclone, *placed, "--retries=20"], env=environment, capture_output=True, text=True, timeout=60
            )
        finally:
            server.kill()
            server.wait()
        assert done.returncode == 0, done.stderr
        assert all(json.loads(line) for line in done.stderr.splitlines())  # its log is JSON lines
        copied = {str(path.relative_to(models)) for path in models.rglob("*") if path.is_file()}
        wanted = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
        assert copied == {path for path in wanted if not path.startswith(".")}
        assert (models / "digits/1/model.onnx").read_bytes() == (source / "digits/1/model.onnx").read_bytes()

    def test_source_that_cannot_be_had_stops_the_pod(self, tmp_path: Path) -> None:
        rclone = tool("rclone")
        (init,) = of_kind("cpu", "Deployment")["spec"]["template"]["spec"]["initContainers"]
        placed = [
            {"$(MODEL_SOURCE)": "models:models", "/models": str(tmp_path)}.get(each, each) for each in init["args"]
        ]
        nobody = {
            "RCLONE_CONFIG_MODELS_TYPE": "http",
            "RCLONE_CONFIG_MODELS_URL": f"http://127.0.0.1:{nginx.free_port()}/",
        }
        done = subprocess.run(
            [rclone, *placed, "--retries=1", "--low-level-retries=1"], env=nobody, capture_output=True, timeout=60
        )
        assert done.returncode != 0


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[images.Container]:
    with played(tmp_path_factory.mktemp("pod")) as running:
        yield running


@pytest.mark.timeout(1200)  # may have to build the image first
class TestPod:
    """The demo overlay's pod, started by podman: it has no scheduler and no probes, but the same kernel."""

    def test_it_has_no_rights_and_the_settings_of_the_config_map(self, pod: images.Container) -> None:
        inspected = pod.inspect()
        assert inspected["Config"]["User"] == "10001:10001"
        assert inspected["HostConfig"]["ReadonlyRootfs"] is True
        assert inspected["HostConfig"]["Memory"] == 1024**3
        assert not inspected["EffectiveCaps"]
        assert "no-new-privileges" in inspected["HostConfig"]["SecurityOpt"]
        settings = of_kind("demo", "ConfigMap")["data"].items()
        assert {f"{name}={value}" for name, value in settings} <= set(inspected["Config"]["Env"])

    def test_threads_follow_the_cpu_limit(self, pod: images.Container) -> None:
        (started,) = [line for line in lines_of(pod) if line.get("event") == "started"]
        assert started["threads"] == min(2, len(os.sched_getaffinity(0)))

    def test_probe_paths_answer(self, pod: images.Container) -> None:
        container = container_of("demo")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = container[probe]["httpGet"]["path"]
            answer = raw_http.exchange(pod.port, raw_http.request("GET", path))
            assert answer.status_code == 200, path

    def test_it_classifies(self, pod: images.Container) -> None:
        headers = {"Content-Type": bodies.PNG}
        request = raw_http.request("POST", "/api/v1/models/digits/classify", headers, bodies.drawn_digit(7))
        (result,) = raw_http.exchange(pod.port, request).json()["results"]
        assert result["predictions"][0]["label"] == "7"

    def test_it_drains_and_ends_by_itself_within_its_grace(self, tmp_path: Path) -> None:
        grace = of_kind("demo", "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        with played(tmp_path) as pod:
            began = time.monotonic()
            assert pod.stop(grace) == 0
            assert time.monotonic() - began < grace
            assert [line["lost"] for line in lines_of(pod) if line.get("event") == "drain_ended"] == [0]


@contextmanager
def played(folder: Path) -> Iterator[images.Container]:
    """The demo overlay's pod, ready: with the image built here, published on a free port of this machine."""
    if os.geteuid() != 0:
        pytest.skip("podman is set up for root")
    tool("podman")
    name, port = f"fovea-test-{uuid.uuid4().hex[:8]}", nginx.free_port()
    deployment, settings = of_kind("demo", "Deployment"), of_kind("demo", "ConfigMap")
    deployment["metadata"]["name"] = name
    deployment["spec"]["replicas"] = 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["image"] = images.built_image("demo")
    container["ports"][0] |= {"hostPort": port, "hostIP": "127.0.0.1"}
    file = folder / "pod.yaml"
    file.write_text(yaml.safe_dump_all([settings, deployment]))
    try:
        run("podman", "play", "kube", file)
        pod = images.Container(f"{name}-pod-0-fovea")
        pod.port = port  # published by the pod
        yield pod.wait_until_ready()
    finally:
        run("podman", "play", "kube", "--down", file)


def lines_of(pod: images.Container) -> list[Resource]:
    """Its log."""
    return [json.loads(line) for line in pod.logs.splitlines() if line.startswith("{")]
