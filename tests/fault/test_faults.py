"""The faults of the matrix that one machine can stage alone (replicas, kills and drains: `tests/real`, `tests/e2e`).

Figures that are times of good traffic have a few milliseconds of slack: other work runs on the machine.
"""

import asyncio
import os
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.fault.conftest import Figure
from tests.fault.traffic import Timed, classify, drip, good_traffic, open_loop, probe, statuses, until
from tests.support import bodies, raw_http
from tests.support.scrape import Scrape
from tests.support.server_process import FOVEA, ServerProcess, clean_environment

CROWD = 500
OVERLOAD_SECONDS = float(os.environ.get("FAULT_SECONDS", "60"))
FAKETIME = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
_NOISE_SECONDS = 0.005
_TURNS = 4  # of overload
_CLIENT_FILES = 4096

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def files() -> None:
    """The clients need a descriptor each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _CLIENT_FILES), hard))


def scrape(server: ServerProcess) -> Scrape:
    return Scrape.parse(server.get("/metrics")[1].decode())


async def while_good_traffic(
    server: ServerProcess, figure: Figure, fault: str, harm: Callable[[], object], seconds: float
) -> None:
    """Good traffic before and during `harm`, an async function: none is lost, and its p99 stays."""
    base = await good_traffic(server.port, 5.0)
    during, _ = await asyncio.gather(good_traffic(server.port, seconds), harm())  # type: ignore[call-overload]
    figure(fault, "good requests not answered 200", during.total - during.count(200), 0)
    bound = 1.5 * base.percentile(0.99) + _NOISE_SECONDS
    figure(fault, "p99 of good requests, s (1.5 x before + noise)", during.percentile(0.99), bound)


@pytest.mark.parametrize("fault", ["F1", "F2"])
async def test_slow_clients_are_closed_and_cost_the_others_nothing(
    server: ServerProcess, figure: Figure, fault: str
) -> None:
    """500 that drip their heads, or their bodies."""
    fds = psutil.Process(server.pid).num_fds()
    head = b"POST /api/v1/models/colors/classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
    start, bound, status = (head, 6.0, 408) if fault == "F1" else (head + b"Content-Length: 90000\r\n\r\n", 12.0, 408)
    ended: list[tuple[float, bytes]] = []

    async def harm() -> None:
        async def one(index: int) -> None:
            await asyncio.sleep(index * 0.002)
            ended.append(await drip(server.port, start, 1.0, bound + 5))

        await asyncio.gather(*(one(index) for index in range(CROWD)))

    await while_good_traffic(server, figure, fault, harm, bound + 2)
    figure(fault, "slowest of 500 closed after, s", max(seconds for seconds, _ in ended), bound)
    figure(fault, f"of 500 not told {status}", CROWD - statuses([said for _, said in ended])[status], 0)
    await until(lambda: psutil.Process(server.pid).num_fds() <= fds + 5, "descriptors are back", 10.0)
    figure(fault, "descriptors more than before", psutil.Process(server.pid).num_fds() - fds, 5)


async def test_f3_clients_that_do_not_read_are_cut_off(server: ServerProcess, figure: Figure) -> None:
    """They ask for a file of a megabyte, many times over, and leave it."""
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    stuck = []
    for _ in range(50):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(raw_http.request("GET", "/docs-assets/swagger-ui-bundle.js") * 20)
        stuck.append(connection)
    began_at = time.monotonic()
    most = 0
    while scrape(server).total("fovea_connections_closed_total", reason="write_stall") < 50:
        assert time.monotonic() - began_at < 40
        most = max(most, process.memory_info().rss - before)
        await asyncio.sleep(0.25)
    figure("F3", "all 50 closed after, s", time.monotonic() - began_at, 32.0)
    figure("F3", "memory for each of them, MiB", most / 50 / 2**20, 1.0)
    for connection in stuck:
        connection.close()


async def test_f4_uploads_that_are_broken_off_leave_nothing(server: ServerProcess, figure: Figure) -> None:
    before = scrape(server)
    part = classify("colors", bodies.plain_color("red") + bytes(100_000))[:50_000]
    for _ in range(10):
        pairs = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)))
        for _, writer in pairs:
            writer.write(part)
        await asyncio.sleep(0.02)
        for _, writer in pairs:
            writer.transport.abort()
    began_at = time.monotonic()
    await until(lambda: scrape(server).total("fovea_inflight_requests") == 0, "nothing is under way", 5.0)
    tasks = before.total("fovea_event_loop_tasks")
    await until(lambda: scrape(server).total("fovea_event_loop_tasks") <= tasks + 1, "tasks are back", 5.0)
    figure("F4", "tasks and requests back after, s", time.monotonic() - began_at, 2.0)
    figure("F4", "errors logged", sum(line["level"] in ("error", "critical") for line in server.lines), 0)
    after = scrape(server)
    gone = after.grown(before, "fovea_cancelled_total", model="colors", phase="receive")
    figure("F4", "of 1,000 not counted as gone while sending (unaccepted ones)", 1000 - gone, 50)


@pytest.mark.parametrize("server", [("--limits.timeout-ms", "60000")], indirect=True)
async def test_f5_clients_that_leave_the_queue_are_never_run(server: ServerProcess, figure: Figure) -> None:
    """1,000 behind a model that takes a tenth of a second."""
    before = scrape(server)
    request = classify("slow")
    pairs = []
    for _ in range(10):
        pairs += await asyncio.gather(*(asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)))
        for _, writer in pairs[-100:]:
            writer.write(request)
    await until(lambda: scrape(server).total("fovea_inflight_requests") >= 950, "they are queued", 30.0)
    for _, writer in pairs:
        writer.transport.abort()
    began_at = time.monotonic()
    await until(lambda: scrape(server).total("fovea_queue_entries", model="slow") == 0, "the queue is empty", 5.0)
    figure("F5", "all noticed after, s", time.monotonic() - began_at, 1.0)
    await until(lambda: scrape(server).total("fovea_inflight_requests") == 0, "nothing is under way", 5.0)
    after = scrape(server)
    executed = after.grown(before, "fovea_batch_size_sum", model="slow")
    ended = after.grown(before, "fovea_requests_total", model="slow", outcome="ok")
    abandoned = 1000 - ended
    figure("F5", "share of those who left that was executed, %", 100 * (executed - ended) / abandoned, 1.0)
    counted = after.grown(before, "fovea_cancelled_total", model="slow")
    figure("F5", "left and not counted", abs(abandoned - counted), 0)


async def test_f6_ten_times_what_can_be_done(server: ServerProcess, figure: Figure) -> None:
    """F6, F25, F26 and F28 at once: overload, liveness, scrapes with unknown models, and what is told to come back."""
    request = classify("crowded")
    capacities = [await _capacity(server.port, request)]
    saturated = await open_loop(server.port, [request], capacities[0], 15.0)
    names = [classify(f"unknown-{index}") for index in range(20)]
    await open_loop(server.port, names, 50.0, 1.0)
    series = len(scrape(server).samples)
    process = psutil.Process(server.pid)
    rss = process.memory_info().rss

    overloaded, alive, scraped = Timed(), Timed(), Timed()
    seconds = OVERLOAD_SECONDS / _TURNS
    for turn in range(_TURNS):  # what it can do is measured between them: a machine's speed may change in a minute
        capacities.append(await _capacity(server.port, request))
        others = [classify(f"other-{turn}-{index}") for index in range(1000 // _TURNS)]
        parts = await asyncio.gather(
            open_loop(server.port, [request], 10 * capacities[-1], seconds),
            probe(server.port, "/livez", seconds),
            probe(server.port, "/metrics", seconds),
            open_loop(server.port, others, 20.0, seconds),
        )
        for whole, part in zip((overloaded, alive, scraped), parts, strict=False):
            whole.add(part)
    grown = process.memory_info().rss - rss
    ended_at = time.monotonic()
    while (await open_loop(server.port, [request], capacities[-1] / 2, 1.0)).count(503):
        assert time.monotonic() - ended_at < 10
    figure("F6", "recovered after, s", time.monotonic() - ended_at, 5.0)
    capacities.append(await _capacity(server.port, request))
    capacity = statistics.mean(capacities[1:])
    figure(
        "F6",
        f"capacity {capacity:.1f}/s; goodput missing of it, %",
        100 * (1 - overloaded.count(200) / OVERLOAD_SECONDS / capacity),
        10,
    )
    worst = 2 * max(saturated.percentile(0.99), 0.5)
    figure("F6", "p99 of accepted, s (2 x at saturation)", overloaded.percentile(0.99), worst)
    figure("F6", "p99 of refusals, s", overloaded.percentile(0.99, 503), 0.050)
    figure("F6", "answers neither 200 nor 503", overloaded.total - overloaded.count(200) - overloaded.count(503), 0)
    missing = sum(headers.get("retry-after") not in ("1", "2", "3") for headers in overloaded.headers)
    figure("F28", "refusals without Retry-After of 1 to 3", missing, 0)
    figure("F28", "kinds of Retry-After fewer than two", 2 - len({one["retry-after"] for one in overloaded.headers}), 0)
    figure("F6", "memory grown, MiB", grown / 2**20, 64)
    figure("F25", "liveness not answered in a second", alive.total - alive.count(200), 0)
    figure("F26", "slowest scrape, s", scraped.percentile(1.0), 0.200)
    figure("F26", "new series after a thousand unknown names", len(scrape(server).samples) - series, 2)


async def _capacity(port: int, request: bytes, seconds: float = 5.0) -> float:
    """Answers a second to four clients that ask one thing after the other."""
    return sum(await asyncio.gather(*(_ask_for(port, request, seconds) for _ in range(4)))) / seconds


async def _ask_for(port: int, request: bytes, seconds: float) -> int:
    connection, done, end_at = await raw_http.Connection.open(port), 0, time.monotonic() + seconds
    while time.monotonic() < end_at:
        done += (await connection.ask(request)).status_code == 200
    await connection.close()
    return done


async def test_f15_a_repository_that_vanishes_stops_nothing(tmp_path: Path, repository: Path, figure: Figure) -> None:
    folder = tmp_path / "models"
    shutil.copytree(repository, folder)
    with ServerProcess(folder, "--server.drain-delay-s", "0", "--repository.poll-interval-s", "0.2") as server:
        server.wait_until_ready()
        folder.rename(tmp_path / "gone")
        await until(lambda: scrape(server).total("fovea_repository_errors_total") >= 1, "it is noticed", 3.0)
        during = await good_traffic(server.port, 2.0)
        figure("F15", "requests not answered 200 without a repository", during.total - during.count(200), 0)
        (tmp_path / "gone").rename(folder)
        errors = scrape(server).total("fovea_repository_errors_total")
        await asyncio.sleep(1.0)
        figure(
            "F15", "looks that fail once it is back", scrape(server).total("fovea_repository_errors_total") - errors, 1
        )


async def test_f10_memory_that_runs_out_costs_the_request_that_wanted_it(server: ServerProcess, figure: Figure) -> None:
    """Room for 40 MiB more, and an image of 25 megapixels, which are 75 MB."""
    size = psutil.Process(server.pid).memory_info().vms
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_AS)
    large = classify("colors", bodies.png_of_zeros(5000, 4990))
    resource.prlimit(server.pid, resource.RLIMIT_AS, (size + 40 * 2**20, hard))
    answered = [await _one(server.port, large) for _ in range(5)]
    resource.prlimit(server.pid, resource.RLIMIT_AS, (hard, hard))
    figure("F10", "answers that are neither 200 nor 503", sum(status not in (200, 503) for status in answered), 0)
    figure("F10", "of 5 not refused for want of memory", sum(status != 503 for status in answered), 4)
    after = [await _one(server.port, classify("colors")) for _ in range(100)]
    figure("F10", "of the next 100 not answered 200", sum(status != 200 for status in after), 0)


@pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="slowhttptest is not installed")
@pytest.mark.parametrize(("kind", "bound"), [("-H", 9), ("-B", 15)])
def test_slowhttptest_finds_the_service_available(
    server: ServerProcess, figure: Figure, kind: str, bound: float
) -> None:
    """500 connections, 100 new ones a second: whether it finds others served, and when all of its own are closed."""
    rate = ["-c", "500", "-r", "100", "-i", "10", "-l", "60", "-p", "3", "-s", "8192", "-t", "POST"]
    command = ["slowhttptest", kind, *rate, "-u", f"{server.url}/api/v1/models/colors/classify"]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    said = re.sub(r"\x1b\[[0-9;]*m", "", said)
    fault = {"-H": "F1", "-B": "F2"}[kind]
    available = re.findall(r"service available: +(\w+)", said)
    assert available
    figure(fault, f"slowhttptest {kind}: looks that found no service", len(available) - available.count("YES"), 0)
    (ended,) = re.findall(r"Test ended on (\d+)", said)
    figure(fault, f"slowhttptest {kind}: all closed on second", float(ended), bound + 5)
    assert "No open connections left" in said


@pytest.mark.skipif(not FAKETIME, reason="libfaketime is not installed")
async def test_f17_a_clock_that_jumps_expires_nothing(repository: Path, tmp_path: Path, figure: Figure) -> None:
    """An hour on, an hour back, while requests are under way; the monotonic clock goes on as it was."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = [
        f"LD_PRELOAD={FAKETIME[0]}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_NO_CACHE=1",
        "DONT_FAKE_MONOTONIC=1",
    ]
    with ServerProcess(repository, "--server.drain-delay-s", "0", command=["env", *faked, str(FOVEA)]) as server:
        server.wait_until_ready()
        asking = asyncio.create_task(good_traffic(server.port, 3.0))
        for offset in ("+3600", "-3600", "+0"):
            await asyncio.sleep(0.7)
            clock.write_text(offset)
        during = await asking
        figure("F17", "requests not answered 200 while the clock jumps", during.total - during.count(200), 0)
        hours = {line["ts"][:13] for line in server.lines}
        assert len(hours) >= 3  # it did jump


async def test_f18_descriptors_that_run_out_are_survived(repository: Path, figure: Figure) -> None:
    command = ["prlimit", "--nofile=128:128", str(FOVEA)]
    with ServerProcess(repository, "--server.drain-delay-s", "0", command=command) as server:
        server.wait_until_ready()
        process = psutil.Process(server.pid)
        held = []
        for _ in range(200):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", server.port))
            held.append(connection)
        before = process.cpu_times()
        await asyncio.sleep(2.0)
        after = process.cpu_times()
        spent = after.user + after.system - before.user - before.system
        figure("F18", "CPU while starved, % of a core", 100 * spent / 2.0, 20)
        for connection in held:
            connection.close()
        began_at = time.monotonic()
        await until(lambda: server.status_of("/livez") == 200, "it answers again", 5.0)
        figure("F18", "good answer after release, s", time.monotonic() - began_at, 2.0)


@pytest.mark.parametrize("server", [("--log.success-sample", "0")], indirect=True)
async def test_f19_large_images_do_not_hold_up_the_event_loop(server: ServerProcess, figure: Figure) -> None:
    large = classify(
        "colors", bodies.encoded(bodies.noise(2400, 2000), "JPEG", quality=80), **{"Content-Type": bodies.JPEG}
    )
    asking = [asyncio.create_task(_ask_for(server.port, large, 6.0)) for _ in range(8)]
    probed = await probe(server.port, "/livez", 5.0, 0.05)
    await asyncio.gather(*asking)
    figure("F19", "probes not answered", probed.total - probed.count(200), 0)
    figure("F19", "slowest probe beside large images, s", probed.percentile(1.0), 0.250)


async def test_f21_a_reader_of_the_log_that_stops_costs_no_answer(repository: Path, figure: Figure) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(FOVEA),
        "serve",
        "--model-repo",
        str(repository),
        "--server.port",
        str(port),
        "--server.drain-delay-s",
        "0",
    ]
    with subprocess.Popen(  # noqa: ASYNC220
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean_environment()
    ) as process:
        try:
            await until(lambda: _is_ready(port), "the server is ready", 40.0)
            base = await good_traffic(port, 2.0)
            during = await good_traffic(port, 8.0, clients=8, pause=0.0)
            after = await good_traffic(port, 2.0)
            figure("F21", "requests not answered 200 with the log blocked", during.total - during.count(200), 0)
            bound = 1.5 * base.percentile(0.5) + _NOISE_SECONDS
            figure("F21", "median with the log blocked, s", after.percentile(0.5), bound)
        finally:
            process.kill()


def _is_ready(port: int) -> bool:
    try:
        return raw_http.exchange(port, raw_http.request("GET", "/readyz")).status_code == 200
    except (OSError, raw_http.IncompleteAnswer):
        return False


async def test_f22_what_expired_while_the_process_stood_still_is_not_run(server: ServerProcess, figure: Figure) -> None:
    request = classify("slow").replace(b"/classify ", b"/classify?timeout_ms=2000 ", 1)
    asking = [asyncio.create_task(_one(server.port, request)) for _ in range(40)]
    await until(lambda: scrape(server).total("fovea_inflight_requests") >= 39, "they are queued", 5.0)
    before = scrape(server)
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.sleep(5.0)
    os.kill(server.pid, signal.SIGCONT)
    answered = await asyncio.gather(*asking)
    late = scrape(server).grown(before, "fovea_batch_size_sum", model="slow")
    figure("F22", "executions after the deadline (those that ran)", late, 3)
    figure("F22", "answers neither 200 nor 504", sum(status not in (200, 504) for status in answered), 0)
    figure("F22", "seconds until it serves again", await _seconds_to_serve(server.port), 1.0)


async def _one(port: int, request: bytes) -> int:
    connection = await raw_http.Connection.open(port)
    status = (await connection.ask(request)).status_code
    await connection.close()
    return status


async def _seconds_to_serve(port: int) -> float:
    began_at = time.monotonic()
    assert await _one(port, classify("colors")) == 200
    return time.monotonic() - began_at


@pytest.mark.parametrize("server", [("--admin.token", "a-token-for-tests")], indirect=True)
def test_f23_an_admin_storm_ends_in_the_last_command(server: ServerProcess, figure: Figure) -> None:
    headers = {"Authorization": "Bearer a-token-for-tests"}
    odd: list[int] = []

    def storm(seed: int) -> None:
        pick = random.Random(seed)
        with httpx2.Client(base_url=server.url, headers=headers, timeout=60.0) as client:
            for _ in range(20):
                status = client.post(f"/v2/repository/models/colors/{pick.choice(['load', 'unload'])}").status_code
                if status not in (200, 400, 503):
                    odd.append(status)

    threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figure("F23", "answers to 640 loads and unloads that are not documented", len(odd), 0)
    with httpx2.Client(base_url=server.url, headers=headers, timeout=60.0) as client:
        assert client.post("/v2/repository/models/colors/unload").status_code == 200
        assert client.get("/v2/models/colors/ready").status_code == 503
        assert client.post("/v2/repository/models/colors/load").status_code == 200
        assert client.get("/v2/models/colors/ready").status_code == 200


async def test_f27_fifty_sizes_leave_the_memory_as_it_was(server: ServerProcess, figure: Figure) -> None:
    sizes = [classify("colors", bodies.encoded(bodies.noise(40 + 9 * index, 500 - 7 * index))) for index in range(50)]
    for request in sizes * 3:
        assert await _one(server.port, request) == 200
    before = psutil.Process(server.pid).memory_info().rss
    for request in sizes * 6:
        await _one(server.port, request)
    figure(
        "F27",
        "memory grown over 300 images of 50 sizes, MiB",
        (psutil.Process(server.pid).memory_info().rss - before) / 2**20,
        8,
    )
