"""The image as a platform team gets it: what is in it, how it starts under limits, what it answers, how it stops."""

import http.client
import io
import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.real.images import Container, built_image, config, mounted_root, run, run_container
from tests.support import bodies, raw_http
from tests.support.photos import photo
from tests.support.server_process import MODEL_REPO, PROJECT, poll

pytestmark = pytest.mark.timeout(1200)  # the first test builds

MOST_BYTES = 450_000_000  # unpacked, without models
READY_SECONDS = 3.0  # from `podman run` to /readyz, on one CPU
CLASSIFY = "/api/v1/models/imagenet/classify"
CLIENTS = 4  # more than the one CPU serves at a time, so that requests wait when the signal comes


@pytest.fixture(scope="module")
def demo() -> Iterator[Container]:
    with run_container(built_image("demo")) as container:
        yield container.wait_until_ready()


@pytest.fixture(scope="module")
def coffee() -> bytes:
    buffer = io.BytesIO()
    photo("coffee").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def post(connection: http.client.HTTPConnection, image: bytes) -> http.client.HTTPResponse:
    connection.request("POST", CLASSIFY, image, {"Content-Type": "image/jpeg"})
    return connection.getresponse()


class TestDockerfile:
    def test_hadolint_has_nothing_to_say(self) -> None:
        hadolint = Path(sys.executable).with_name("hadolint")
        linter = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
        assert linter, "hadolint is not installed (requirements/real.txt)"
        run(linter, PROJECT / "Dockerfile")

    def test_default_target_is_cpu(self) -> None:
        stages = [line.split() for line in (PROJECT / "Dockerfile").read_text().splitlines() if line.startswith("FROM")]
        assert stages[-1][-1] == "cpu"


class TestContents:
    @pytest.mark.parametrize("target", ["cpu", "demo"])
    def test_runs_as_a_number_that_is_not_root_and_without_a_shell(self, target: str) -> None:
        image = config(built_image(target))
        assert image["Config"]["User"] == "10001:10001"
        assert image["Config"]["Entrypoint"] == ["fovea", "serve"]
        assert image["Config"]["StopSignal"] == "SIGTERM"
        assert image["Healthcheck"]["Test"][:2] == ["CMD", "python"]
        labels = image["Labels"]
        assert {"title", "licenses", "version", "revision"} <= {name.rpartition(".")[2] for name in labels}

    def test_cpu_image_without_models_is_under_450_megabytes(self) -> None:
        with mounted_root(built_image("cpu")) as root:
            files = {(found := path.lstat()).st_ino: found.st_size for path in root.rglob("*")}
        assert sum(files.values()) < MOST_BYTES

    def test_models_come_by_volume_only(self) -> None:
        with mounted_root(built_image("cpu")) as root:
            assert list((root / "models").iterdir()) == []
            assert list(root.rglob("model.onnx")) == []  # onnxruntime carries examples by other names

    def test_no_installer_and_no_compiler_is_left(self) -> None:
        with mounted_root(built_image("cpu")) as root:
            folders = [root / folder for folder in ("usr/bin", "usr/local/bin", "opt/fovea/bin")]
            commands = {path.name for folder in folders for path in folder.iterdir()}
            modules = (path.parent for path in root.rglob("*/__init__.py"))
            packages = {module.name for module in modules if module.parent.name.endswith("-packages")}
        assert not commands & {"cc", "gcc", "g++", "c++", "clang", "make", "ld", "as", "pip", "pip3", "uv"}
        assert "onnxruntime" in packages
        assert not packages & {"pip", "setuptools", "wheel", "uv"}

    def test_nothing_in_it_belongs_to_the_user_it_runs_as(self) -> None:
        with mounted_root(built_image("demo")) as root:
            mine = [path for path in root.rglob("*") if 10001 in ((found := path.lstat()).st_uid, found.st_gid)]
        assert mine == []


class TestService:
    @pytest.mark.parametrize(
        ("target", "models"), [("demo", None), ("cpu", MODEL_REPO)], ids=["demo", "cpu and volume"]
    )
    def test_ready_within_three_seconds_on_one_cpu_and_half_a_gigabyte(self, target: str, models: Path | None) -> None:
        image = built_image(target)
        started_at = time.monotonic()
        with run_container(image, models=models, cpus=1.0, memory="512m") as container:
            container.wait_until_ready()
            assert time.monotonic() - started_at < READY_SECONDS
            assert container.is_healthy()

    def test_photograph_gets_its_labels(self, demo: Container, coffee: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=20.0)
        answer = post(connection, coffee)
        predictions = json.loads(answer.read())["results"][0]["predictions"]
        connection.close()
        assert answer.status == 200
        assert predictions[0]["label"] == "espresso"
        scores = [prediction["score"] for prediction in predictions]
        assert scores == sorted(scores, reverse=True)

    def test_every_line_it_writes_is_json(self, demo: Container) -> None:
        """No library writes past the log; ONNX Runtime does where its telemetry may start and finds no home."""
        lines = demo.logs.splitlines()
        assert len(lines) >= 5
        assert [line for line in lines if not line.startswith("{")] == []

    def test_process_has_no_rights_to_lose(self, demo: Container) -> None:
        status = demo.python("print(open('/proc/1/status').read())").splitlines()
        facts = {name: value.split() for name, _, value in (line.partition(":") for line in status)}
        assert facts["Uid"] == ["10001"] * 4
        assert facts["Gid"] == ["10001"] * 4
        assert facts["CapEff"] == facts["CapBnd"] == ["0" * 16]
        assert facts["NoNewPrivs"] == ["1"]
        assert "fovea" in demo.python("print(open('/proc/1/cmdline').read())")

    def test_nothing_but_tmp_can_be_written(self, demo: Container) -> None:
        mounts = [line.split() for line in demo.python("print(open('/proc/mounts').read())").splitlines()]
        assert next(options for _, place, _, options, *_ in mounts if place == "/").split(",")[0] == "ro"
        code = "import tempfile; tempfile.TemporaryFile(dir='{}').write(b'x'); print('written')"
        assert demo.python(code.format("/tmp")) == "written"
        for folder in ("/var/tmp", "/run", "/models", "/opt/fovea"):
            refused = run("podman", "exec", demo.name, "python", "-I", "-c", code.format(folder), check=False)
            assert "written" not in refused.stdout, folder
            assert "Read-only file system" in refused.stderr or "Permission denied" in refused.stderr, folder

    def test_needs_no_network_at_run_time(self) -> None:
        with run_container(built_image("demo"), options=("--network", "none")) as container:
            poll(container.is_healthy, "healthy without a network", 20.0)
            read = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000{}', timeout=5).status)"
            for path in ("/docs", "/openapi.json", "/metrics"):
                assert container.python(read.format(path)) == "200", path

    def test_health_check_fails_while_nothing_is_loaded(self) -> None:
        """Alive with an empty repository, and not healthy: what the check asks is readiness. On another port, too."""
        options = ("--env", "FOVEA_SERVER__PORT=9000")
        with run_container(built_image("cpu"), options=options) as container:
            poll(lambda: '"listening"' in container.logs, "it listens")
            assert not container.is_healthy()
            assert container.is_running
        with run_container(built_image("demo"), options=options) as container:
            poll(container.is_healthy, "healthy on another port", 20.0)


class TestOpenCV:
    """Its arithmetic is for models that were trained with it: built in by `--build-arg WITH=opencv`, else asked for."""

    @pytest.fixture
    def models(self, tmp_path: Path) -> Path:
        manifest = bodies.COLOR_MANIFEST + 'resampler = "opencv"\n'
        bodies.write_model(tmp_path / "colors", bodies.mean_color_model(), manifest=manifest, labels=bodies.COLORS)
        tmp_path.chmod(0o755)  # the image's user must be able to read it
        return tmp_path

    def test_image_without_it_says_what_the_model_needs(self, models: Path) -> None:
        with run_container(built_image("cpu"), models=models) as container:
            poll(lambda: "fovea[opencv]" in container.logs, "the remedy is named")
            assert not container.is_ready()

    def test_image_with_it_serves_the_model(self, models: Path) -> None:
        image = Image.new("RGB", (40, 30), "red")
        with run_container(built_image("cpu", "opencv"), models=models) as container:
            container.wait_until_ready()
            headers = {"Content-Type": bodies.PNG}
            request = raw_http.request("POST", "/api/v1/models/colors/classify", headers, bodies.encoded(image))
            (result,) = raw_http.exchange(container.port, request).json()["results"]
        assert result["predictions"][0]["label"] == "red"


class TestStop:
    def test_podman_stop_under_load_loses_no_accepted_request(self, coffee: bytes) -> None:
        """A client keeps its connection, makes a new one where it is told to, and ends when nobody listens."""
        statuses: Counter[int] = Counter()
        lost: list[str] = []

        with run_container(built_image("demo")) as container:
            container.wait_until_ready()

            def ask_until_refused() -> None:
                while True:
                    # the container's own address: the published port outlives the container by a moment
                    connection = http.client.HTTPConnection(container.address, 8000, timeout=30.0)
                    try:
                        connection.connect()
                    except OSError:
                        return
                    closes = False
                    while not closes:
                        try:
                            answer = post(connection, coffee)
                            answer.read()
                        except (OSError, http.client.HTTPException) as error:
                            lost.append(repr(error))
                            break
                        statuses[answer.status] += 1
                        closes = answer.will_close
                    connection.close()

            clients = [threading.Thread(target=ask_until_refused, daemon=True) for _ in range(CLIENTS)]
            for client in clients:
                client.start()
            poll(lambda: statuses.total() >= 5 * CLIENTS, "the load is there")
            before = statuses.total()
            code = container.stop(grace_seconds=30)
            for client in clients:
                client.join(30.0)
            events = container.logs
        assert code == 0, events[-3000:]
        assert lost == []
        assert set(statuses) == {200}
        assert statuses.total() >= before + CLIENTS  # the drain delay answered as before
        assert '"drain_ended"' in events
