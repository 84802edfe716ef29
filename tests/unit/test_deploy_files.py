"""What the files of deploy/ say of the service is true: settings, paths and numbers. Read as text: no YAML library."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from service import config
from service.config import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DEPLOYMENT = (KUBERNETES / "base" / "deployment.yaml").read_text()
COMPOSE = (DEPLOY / "compose.yaml").read_text()
NGINX = (DEPLOY / "nginx" / "nginx.conf").read_text()
INGRESS = (KUBERNETES / "components" / "ingress" / "ingress.yaml").read_text()
_MARGIN_SECONDS = 5  # for the exit, after the service has given up on its last connection


def number(pattern: str, text: str) -> int:
    """The one number that `pattern` finds, so that a pattern which finds nothing is an error."""
    found = re.findall(pattern, text, re.MULTILINE)
    assert len(found) == 1, f"{pattern}: {found}"
    return int(found[0])


def texts() -> Iterator[tuple[Path, str]]:
    for path in sorted(DEPLOY.rglob("*")):
        if path.is_file() and path.suffix in {".yaml", ".yml", ".env", ".conf", ".md"}:
            yield path, path.read_text(encoding="utf-8")


def test_every_setting_named_exists() -> None:
    known = {f"{section}.{name}" for section, name, _ in config.fields()}
    sections = "|".join(Settings.model_fields)
    named = set()
    for path, text in texts():
        variables = re.findall(r"\bFOVEA_([A-Z]+)__([A-Z0-9_]+)", text)
        dotted = re.findall(rf"\b({sections})\.([a-z][a-z_]+_(?:s|ms|bytes|interval))\b", text)
        for section, name in [*variables, *dotted]:
            setting = f"{section.lower()}.{name.lower()}"
            assert setting in known, f"{path.relative_to(DEPLOY)}: there is no setting {setting}"
            named.add(setting)
    assert named >= {"server.host", "server.root_path", "server.drain_delay_s", "limits.inflight_bytes"}


def test_settings_of_the_deployment_start_the_service() -> None:
    lines = (KUBERNETES / "base" / "settings.env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    settings = config.load(environment=variables)
    assert settings.server.port == number(r"containerPort: (\d+)", DEPLOYMENT)
    assert str(settings.repository.path) == "/models"


def test_prometheus_rule_is_the_rules_of_the_one_file() -> None:
    script = module(KUBERNETES / "prometheusrule.py")
    assert script.RESOURCE.read_text() == script.resource(script.RULES.read_text()), (
        "out of date: python deploy/kubernetes/prometheusrule.py"
    )


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class TestGrace:
    """Whoever stops the service waits longer than its own drain takes."""

    DRAIN = Settings().server.drain_delay_s + Settings().server.grace_s

    def test_of_a_pod(self) -> None:
        grace = number(r"terminationGracePeriodSeconds: (\d+)", DEPLOYMENT)
        assert grace >= number(r"preStop:\n +sleep:\n +seconds: (\d+)", DEPLOYMENT) + self.DRAIN + _MARGIN_SECONDS

    def test_of_a_container(self) -> None:
        assert number(r"stop_grace_period: (\d+)s +# server", COMPOSE) >= self.DRAIN + _MARGIN_SECONDS

    def test_of_nginx_for_its_workers(self) -> None:
        shutdown = number(r"^worker_shutdown_timeout (\d+)s;", NGINX)
        assert shutdown >= Settings().server.grace_s
        assert number(r"stop_grace_period: (\d+)s +# worker", COMPOSE) >= shutdown + _MARGIN_SECONDS


class TestProxies:
    """nginx and the ingress know the service's limits."""

    LIMITS = Settings().limits
    LARGEST = max(LIMITS.body_bytes, LIMITS.json_body_bytes, LIMITS.tensor_body_bytes)

    def test_take_the_largest_body_that_the_service_takes(self) -> None:
        assert number(r"client_max_body_size +(\d+)m;", NGINX) * config.MIB == self.LARGEST
        assert number(r"proxy-body-size: (\d+)m", INGRESS) * config.MIB == self.LARGEST

    def test_are_as_patient_with_slow_clients(self) -> None:
        assert number(r"client_header_timeout +(\d+)s;", NGINX) == self.LIMITS.header_timeout_s
        assert number(r"client_body_timeout +(\d+)s;", NGINX) == self.LIMITS.body_timeout_s
        assert number(r" send_timeout +(\d+)s;", NGINX) == self.LIMITS.write_timeout_s

    def test_wait_longer_than_a_request_may_take(self) -> None:
        for waits in (number(r"proxy_read_timeout +(\d+)s;", NGINX), number(r'proxy-read-timeout: "(\d+)"', INGRESS)):
            assert waits * 1000 > 2 * Settings().limits.timeout_ms

    def test_nginx_closes_idle_connections_before_the_service_does(self) -> None:
        assert number(r"^ +keepalive_timeout (\d+)s;", NGINX) < Settings().server.keep_alive_s


class TestMemory:
    """The limit holds what the settings allow to be in memory at once, beside 256 MiB of process and models."""

    PROCESS_AND_TMP = (256 + 64) * config.MIB

    def test_of_a_pod(self) -> None:
        inflight = number(r"^FOVEA_LIMITS__INFLIGHT_BYTES=(\d+)", (KUBERNETES / "base" / "settings.env").read_text())
        (limit,) = set(re.findall(r"memory: (\d+)Gi", DEPLOYMENT))
        assert int(limit) * 1024 * config.MIB >= self.PROCESS_AND_TMP + inflight + Settings().limits.decode_bytes

    def test_of_a_container(self) -> None:
        needed = self.PROCESS_AND_TMP + Settings().limits.inflight_bytes + Settings().limits.decode_bytes
        assert number(r"mem_limit: \$\{FOVEA_MEMORY:-(\d+)m\}", COMPOSE) * config.MIB >= needed


def test_probes_ask_what_the_service_answers() -> None:
    assert re.findall(r"path: (/\w+z)\n", DEPLOYMENT) == ["/startupz", "/readyz", "/livez"]
