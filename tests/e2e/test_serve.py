"""`fovea serve` from its start: settings, ports, repositories that are empty, slow to load, or partly broken."""

import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from service import __version__
from tests.support import bodies, raw_http
from tests.support.answers import predictions_of, problem_of
from tests.support.server_process import FOVEA, MODEL_REPO, ServerProcess, clean_environment, poll, run_fovea

RED = bodies.plain_color("red")
QUICK = ("--server.drain-delay-s", "0")


def color_model(folder: Path, manifest: str = bodies.COLOR_MANIFEST) -> Path:
    return bodies.write_model(folder, bodies.mean_color_model(), manifest=manifest, labels=bodies.COLORS)


def post(server: ServerProcess, model: str, image: bytes = RED) -> raw_http.RawAnswer:
    path = f"/api/v1/models/{model}/classify"
    return raw_http.exchange(server.port, raw_http.request("POST", path, {"Content-Type": bodies.PNG}, image))


def test_descriptors_for_the_connections_are_asked_for(tmp_path: Path) -> None:
    """Shells and containers give a thousand, and allow many more."""
    color_model(tmp_path / "colors")
    command = ["prlimit", "--nofile=200:5000", str(FOVEA)]
    with ServerProcess(tmp_path, "--limits.connections", "3000", command=command) as server:
        limits = Path(f"/proc/{server.pid}/limits").read_text()
    assert re.search(r"Max open files +3064 +5000 ", limits)


def only_line(text: str) -> str:
    """The one line of what was written to stderr; a traceback has more."""
    (line,) = text.splitlines()
    return line


class TestCommand:
    def test_version_is_printed(self) -> None:
        done = run_fovea("--version")
        assert (done.returncode, done.stdout.strip()) == (0, f"fovea {__version__}")

    def test_module_is_the_same_command(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "service", "--version"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=clean_environment(), timeout=30.0, check=True
        )
        assert done.stdout.strip() == f"fovea {__version__}"

    def test_help_names_every_setting(self) -> None:
        done = run_fovea("serve", "--help")
        assert done.returncode == 0
        for flag in ("--server.drain-delay-s", "--repository.poll-interval-s", "--limits.body-bytes", "--model-repo"):
            assert flag in done.stdout

    @pytest.mark.parametrize("arguments", [(), ("sing",)])
    def test_no_or_unknown_command_is_a_usage_error(self, arguments: tuple[str, ...]) -> None:
        done = run_fovea(*arguments)
        assert done.returncode == 2
        assert "usage: fovea" in done.stderr


class TestSettings:
    def test_printed_settings_are_a_settings_file_with_the_documented_defaults(self, tmp_path: Path) -> None:
        printed = run_fovea("serve", "--print-settings")
        assert (printed.returncode, printed.stderr) == (0, "")
        tree = tomllib.loads(printed.stdout)
        assert tree["server"]["drain_delay_s"] == 5.0
        assert tree["server"]["cors_origins"] == []
        repository = {"path": "model_repo", "poll_interval_s": 5.0, "required": []}
        assert tree["repository"] | repository == tree["repository"]
        assert (tree["limits"]["timeout_ms"], tree["limits"]["max_images"], tree["limits"]["max_rows"]) == (
            5000,
            16,
            64,
        )
        file = tmp_path / "fovea.toml"
        file.write_text(printed.stdout)
        again = run_fovea("serve", "--config", file, "--print-settings")
        assert again.stdout == printed.stdout

    def test_flags_go_before_the_environment_and_that_before_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "fovea.toml"
        file.write_text("[server]\nport = 1\n[limits]\nmax_images = 2\ntimeout_ms = 3\n")
        environment = {"FOVEA_LIMITS__MAX_IMAGES": "4", "FOVEA_LIMITS__TIMEOUT_MS": "5"}
        done = run_fovea(
            "serve", "--config", file, "--limits.timeout-ms", "6", "--print-settings", environment=environment
        )
        tree = tomllib.loads(done.stdout)
        assert (tree["server"]["port"], tree["limits"]["max_images"], tree["limits"]["timeout_ms"]) == (1, 4, 6)

    def test_environment_and_flag_of_the_contract_are_the_same(self) -> None:
        by_flag = run_fovea("serve", "--repository.poll-interval-s", "0.5", "--print-settings")
        by_environment = run_fovea(
            "serve", "--print-settings", environment={"FOVEA_REPOSITORY__POLL_INTERVAL_S": "0.5"}
        )
        assert by_flag.stdout == by_environment.stdout
        assert tomllib.loads(by_flag.stdout)["repository"]["poll_interval_s"] == 0.5

    def test_lists_are_read_from_flags_and_the_environment(self) -> None:
        done = run_fovea(
            "serve",
            "--repository.required",
            "digits, imagenet",
            "--print-settings",
            environment={"FOVEA_SERVER__CORS_ORIGINS": "http://a.example,http://b.example"},
        )
        tree = tomllib.loads(done.stdout)
        assert tree["repository"]["required"] == ["digits", "imagenet"]
        assert tree["server"]["cors_origins"] == ["http://a.example", "http://b.example"]

    def test_secrets_are_not_printed(self) -> None:
        environment = {"FOVEA_ADMIN__TOKEN": "CANARY-1", "FOVEA_AUTH__TOKENS": "CANARY-2,CANARY-3"}
        done = run_fovea("serve", "--print-settings", environment=environment)
        assert done.returncode == 0
        assert "CANARY" not in done.stdout + done.stderr

    def test_what_kubernetes_injects_for_a_service_named_fovea_does_no_harm(self) -> None:
        environment = {
            "FOVEA_PORT": "tcp://10.0.0.1:8000",
            "FOVEA_PORT_8000_TCP": "tcp://10.0.0.1:8000",
            "FOVEA_PORT_8000_TCP_ADDR": "10.0.0.1",
            "FOVEA_SERVICE_HOST": "10.0.0.1",
            "FOVEA_SERVICE_PORT": "8000",
        }
        done = run_fovea("serve", "--print-settings", environment=environment)
        assert done.stdout == run_fovea("serve", "--print-settings").stdout

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("FOVEA_SERVER__PORTT", "80", "there is no such setting"),
            ("FOVEA_SERVERS__PORT", "80", "there is no such setting"),
            ("FOVEA_SERVER__PORT", "eighty", "'eighty'"),
            ("FOVEA_LIMITS__MAX_IMAGES", "0", "'0'"),
        ],
    )
    def test_wrong_variable_stops_the_start_and_is_named(self, variable: str, value: str, said: str) -> None:
        done = run_fovea("serve", environment={variable: value})
        assert (done.returncode, done.stdout) == (2, "")
        line = only_line(done.stderr)
        assert variable in line or (variable.rpartition("__")[0] in line and "no such setting" in said)
        assert said in line

    @pytest.mark.parametrize(("flag", "value"), [("--server.port", "eighty"), ("--log.level", "loud")])
    def test_wrong_flag_stops_the_start_and_is_named(self, flag: str, value: str) -> None:
        done = run_fovea("serve", flag, value)
        assert (done.returncode, done.stdout) == (2, "")
        assert flag in only_line(done.stderr)
        assert repr(value) in done.stderr

    def test_unknown_flag_stops_the_start_and_is_named(self) -> None:
        done = run_fovea("serve", "--server.portt", "80")
        assert done.returncode == 2
        assert "--server.portt" in done.stderr

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[server]\nportt = 80\n", "server.portt"),
            ('[server]\nport = "eighty"\n', "server.port"),
            ("[server\n", "fovea.toml"),
        ],
    )
    def test_wrong_file_stops_the_start_and_names_itself_and_the_setting(
        self, tmp_path: Path, text: str, said: str
    ) -> None:
        file = tmp_path / "fovea.toml"
        file.write_text(text)
        done = run_fovea("serve", "--config", file)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in only_line(done.stderr)
        assert "fovea.toml" in done.stderr

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        done = run_fovea("serve", "--config", tmp_path / "nowhere.toml")
        assert done.returncode == 2
        assert "nowhere.toml" in only_line(done.stderr)

    def test_unknown_image_format_stops_the_start_and_is_named(self) -> None:
        done = run_fovea("serve", "--limits.image-formats", "jpeg,heic", "--server.port", "0")
        assert done.returncode == 2
        assert "limits.image_formats" in only_line(done.stderr)
        assert "'heic'" in done.stderr


class TestPort:
    def test_busy_port_is_one_clear_line_and_exit_code_2(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run_fovea("serve", "--model-repo", tmp_path, "--server.port", port)
        assert (done.returncode, done.stdout) == (2, "")
        line = only_line(done.stderr)
        assert f"127.0.0.1:{port}" in line
        assert "in use" in line

    def test_address_that_is_not_ours_is_one_clear_line_and_exit_code_2(self, tmp_path: Path) -> None:
        host = "203.0.113.1"  # set aside for documentation: nobody's
        done = run_fovea("serve", "--model-repo", tmp_path, "--server.host", host, "--server.port", "0")
        assert (done.returncode, done.stdout) == (2, "")
        assert host in only_line(done.stderr)

    def test_port_can_be_taken_again_right_after_the_end(self, tmp_path: Path) -> None:
        with ServerProcess(tmp_path, *QUICK) as first:
            poll(lambda: first.status_of("/livez") == 200, "it listens")
            assert first.stop() == 0
        with ServerProcess(tmp_path, *QUICK, port=first.port) as second:
            poll(lambda: second.status_of("/livez") == 200, "it listens again")
            assert second.port == first.port

    @pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
    def test_ipv6_is_listened_on(self, tmp_path: Path) -> None:
        with ServerProcess(tmp_path, *QUICK, "--server.host", "::1") as server:

            def answered() -> bytes:
                try:
                    with socket.create_connection(("::1", server.port), 5.0) as connection:
                        connection.sendall(raw_http.request("GET", "/livez"))
                        return raw_http.read_answer(connection).content
                except ConnectionRefusedError:
                    return b""

            assert poll(answered, "an answer over IPv6") == b'{"status":"alive"}'

    def test_service_published_under_a_prefix_keeps_to_it_in_its_pages(self) -> None:
        with ServerProcess(MODEL_REPO, *QUICK, "--server.root-path", "/vision") as server:
            server.wait_until_ready()
            page = server.get("/docs")[1].decode()
            assert "/vision/openapi.json" in page
            assert "/vision/docs-assets/" in page
            assert server.get("/docs-assets/swagger-ui.css")[0] == 200
            assert predictions_of(post(server, "digits", bodies.drawn_digit(7)))[0]["label"] == "7"

    def test_prefix_changes_neither_the_form_of_errors_nor_what_is_logged(self, tmp_path: Path) -> None:
        """A proxy that publishes the service under a prefix takes it off before it asks."""
        with ServerProcess(tmp_path, *QUICK, "--server.root-path", "/vision") as server:
            server.wait_for_event("started")
            assert server.get("/v2/nowhere") == (404, b'{"error":"Not Found"}')
            assert b'"code":"not_found"' in server.get("/nowhere")[1]
            assert server.get("/livez")[0] == 200
            assert server.stop() == 0
            logged = [line["path"] for line in server.lines if line["event"] == "request"]
            assert [path.removeprefix("/vision") for path in logged] == ["/v2/nowhere", "/nowhere"]


class TestRepository:
    @pytest.mark.parametrize("exists", [True, False], ids=["empty", "nonexistent"])
    def test_server_without_models_lives_and_is_not_ready(self, tmp_path: Path, exists: bool) -> None:
        root = tmp_path / "models"
        if exists:
            root.mkdir()
        with ServerProcess(root, *QUICK) as server:
            assert server.wait_for_event("started")["ready"] is False
            assert server.get("/livez")[0] == 200
            assert server.get("/startupz")[0] == 200
            status, body = server.get("/readyz")
            assert (status, b"no model is ready" in body) == (503, True)
            assert server.get("/api/v1/models") == (200, b'{"models":[]}')
            if exists:
                problem_of(post(server, "digits"), 404, "model_not_found")
            else:  # nobody knows what would be there
                problem_of(post(server, "digits"), 503, "model_not_ready")
                assert str(root) in server.wait_for_event("repository_unreadable")["reason"]
                assert b"fovea_repository_errors_total 1.0" in server.get("/metrics")[1]
            assert server.stop() == 0

    def test_models_that_appear_later_are_served_without_a_restart(self, tmp_path: Path) -> None:
        root = tmp_path / "models"
        with ServerProcess(root, *QUICK, "--repository.poll-interval-s", "0.1") as server:
            server.wait_for_event("started")
            color_model(tmp_path / "made" / "colors")
            (tmp_path / "made").rename(root)
            server.wait_until_ready()
            assert predictions_of(post(server, "colors"))[0]["label"] == "red"

    def test_server_answers_probes_while_models_load_and_refuses_them_meanwhile(self, tmp_path: Path) -> None:
        batching = "[batching]\nmax_batch_size = 3\n[execution]\ninstances = 1\n"
        bodies.write_model(
            tmp_path / "heavy",
            bodies.slow_model(),
            manifest=bodies.COLOR_MANIFEST + batching,
            labels=bodies.COLORS,
        )
        with ServerProcess(tmp_path, *QUICK) as server:
            server.wait_for_event("model_state_change", new="LOADING")
            poll(lambda: server.status_of("/livez") == 200, "it listens")
            assert [server.status_of(path) for path in ("/livez", "/startupz", "/readyz")] == [200, 503, 503]
            problem_of(post(server, "heavy"), 503, "model_not_ready")
            server.wait_until_ready()
            assert server.status_of("/startupz") == 200
            assert predictions_of(post(server, "heavy"))[0]["label"] == "red"

    def test_required_model_decides_about_readiness(self, tmp_path: Path) -> None:
        color_model(tmp_path / "colors")
        color_model(tmp_path / "broken", manifest="schema = 2\n")
        required = ("--repository.required", "colors,broken")
        with ServerProcess(tmp_path, *QUICK, *required) as server:
            server.wait_for_event("started")
            status, body = server.get("/readyz")
            assert status == 503
            assert b"required models are not ready: broken" in body
            assert predictions_of(post(server, "colors"))[0]["label"] == "red"

    def test_broken_models_do_not_stop_the_good_ones(self, tmp_path: Path) -> None:
        shutil.copytree(MODEL_REPO / "digits", tmp_path / "digits")
        (color_model(tmp_path / "torn") / "1" / "model.onnx").write_bytes(b"torn")
        color_model(tmp_path / "misread", manifest="[input\n")
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "model.toml").write_text("schema = 1\n")
        with ServerProcess(tmp_path, *QUICK) as server:
            server.wait_until_ready()
            assert predictions_of(post(server, "digits", bodies.drawn_digit(7)))[0]["label"] == "7"
            for name in ("torn", "misread", "empty"):
                problem_of(post(server, name), 503, "model_not_ready")

    def test_second_start_is_ready_in_under_five_seconds(self) -> None:
        started_at = time.monotonic()
        with ServerProcess(MODEL_REPO, *QUICK) as server:
            server.wait_until_ready()
            assert time.monotonic() - started_at < 5.0
