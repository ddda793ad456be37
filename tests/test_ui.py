"""Promises of `lockstep ui`: read-only, for this machine alone, and true to what the files hold at the moment."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sample_metrics
import sample_run
from conftest import ROOT
from html_page import Page
from lockstep.catalog import events, status
from lockstep.catalog.run import Run
from lockstep.cli import main
from lockstep.ui.answers import Site
from lockstep.ui.server import Server

SECRET = "the secret beside the catalog"


@contextlib.contextmanager
def serving(catalog: Path) -> Iterator[Server]:
    with Server(Site(catalog), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ui") / "catalog"
    for name in ("run-a", "run-b"):
        built = sample_run.build(folder / ".new", epochs=3)
        sample_metrics.write(built, steps=33)
        built.path.rename(folder / name)
    (folder.parent / "secret").write_text(SECRET)
    (folder.parent / "events.jsonl").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def server(catalog: Path) -> Iterator[Server]:
    with serving(catalog) as started:
        yield started


def ask(
    server: Server,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=headers is not None and "Host" in headers)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def got(server: Server, path: str) -> Any:
    answer, body = ask(server, path)
    assert answer.status == 200, body
    return json.loads(body)


PAGES = (
    "/",
    "/run/run-a",
    "/report?run=run-a",
    "/report?run=run-a&run=run-b",
    "/api/runs",
    "/api/runs/run-a",
)
STATIC = ("/static/style.css", "/static/table.js", "/static/live.js")


def test_table_lists_every_run_with_what_list_says_and_no_path(server: Server, catalog: Path) -> None:
    rows = got(server, "/api/runs")["runs"]
    assert {row["run_id"] for row in rows} == {"run-a", "run-b"}
    results = json.loads((catalog / "run-a" / "distributed_training_results.json").read_text())
    for row in rows:
        assert row["accuracy"] == results["evaluation"]["final"]["validation"]["accuracy"]
        assert row["strategy"] == "ddp"
        assert str(catalog) not in json.dumps(row)


@pytest.mark.parametrize("path", [*PAGES, *STATIC])
def test_every_answer_is_guarded(server: Server, path: str) -> None:
    answer, body = ask(server, path)
    assert answer.status == 200
    assert body
    policy = answer.getheader("Content-Security-Policy") or ""
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Cache-Control") == "no-store"
    assert answer.getheader("Referrer-Policy") == "no-referrer"
    assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control")]
    head, nothing = ask(server, path, "HEAD")
    assert nothing == b""
    assert head.status == 200
    if not path.startswith("/api/runs/"):  # how long a run has gone on is part of what that tells
        assert head.getheader("Content-Length") == str(len(body))


@pytest.mark.parametrize("path", ["/", "/run/run-a"])
def test_pages_hold_nothing_inline_and_ask_only_this_server(server: Server, path: str) -> None:
    _, body = ask(server, path)
    page = Page(body.decode())
    for tag, attributes in page.elements:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            link = attributes.get(name)
            assert link is None or link == "data:," or (link.startswith("/") and not link.startswith("//")), (
                link
            )
        assert tag != "style"
    assert [text for _, text in page.scripts if text] == []


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
)
def test_anything_but_get_and_head_is_refused(server: Server, method: str) -> None:
    answer, body = ask(server, "/api/runs", method, body=b"x=1")
    assert answer.status == 405
    assert answer.getheader("Allow") == "GET, HEAD"
    assert b"only GET and HEAD" in body


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""],
)
@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/table.js"])
def test_other_host_is_refused_so_that_no_name_can_be_rebound_to_us(
    server: Server, host: str, path: str
) -> None:
    answer, body = ask(server, path, headers={"Host": host.format(port=server.port)})
    assert answer.status == 403
    assert b"run-a" not in body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_own_host_is_answered(server: Server, host: str) -> None:
    answer, _ = ask(server, "/api/runs", headers={"Host": f"{host}:{server.port}"})
    assert answer.status == 200


def test_two_hosts_and_no_host_are_refused(server: Server) -> None:
    own = f"127.0.0.1:{server.port}"
    for heads in (f"Host: {own}\r\nHost: evil.example\r\n", ""):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(f"GET /api/runs HTTP/1.1\r\n{heads}Connection: close\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_script_of_another_site_is_refused_and_a_link_from_one_is_not(server: Server) -> None:
    own = {"Host": f"127.0.0.1:{server.port}", "Sec-Fetch-Site": "cross-site"}
    assert ask(server, "/api/runs", headers={**own, "Sec-Fetch-Mode": "no-cors"})[0].status == 403
    assert ask(server, "/", headers={**own, "Sec-Fetch-Mode": "navigate"})[0].status == 200


WAYS_OUT = (
    *("/../secret", "/static/../../secret", "/run/..", "/run/../secret", "/api/runs/..", "/api/runs/%2e%2e"),
    *(
        "/static/%2e%2e%2f%2e%2e%2fsecret",
        "/report?run=..",
        "/report?run=../../secret",
        "/report?run=/etc/passwd",
    ),
    *(
        "/api/runs/run-a/../../secret",
        "/run/run-a%00",
        "/static/ui.css/..",
        "/static//etc/passwd",
        "//etc/passwd",
    ),
    *(
        "/report",
        "/report?run=",
        "/run/",
        "/run/RUN-A",
        "/api/runs/run-c",
        "/nothing",
        "/static/",
        "/static/x.js",
    ),
)


@pytest.mark.parametrize("path", WAYS_OUT)
def test_no_path_leads_out(server: Server, path: str) -> None:
    answer, body = ask(server, path)
    assert answer.status in (400, 404)
    assert SECRET.encode() not in body
    assert b"Traceback" not in body
    assert answer.getheader("Content-Type") == "text/plain; charset=utf-8"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
    known=st.booleans(),
)
def test_any_path_gets_an_answer_and_never_a_file(server: Server, path: str, known: bool) -> None:
    answer, body = ask(server, ("/api/runs/" if known else "/") + path)
    assert answer.status in (200, 400, 404)
    assert SECRET.encode() not in body


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=1e9", "attempt=" + "9" * 50, "after=²"])
def test_odd_query_is_one_line(server: Server, query: str) -> None:
    answer, body = ask(server, f"/api/runs/run-a?{query.replace('²', '%C2%B2')}")
    assert answer.status == 400
    assert b"is a whole number" in body


def test_no_http_is_answered_in_one_line(server: Server) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"x" * 70_000 + b"\r\n\r\n",
    ):
        connecting = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        with connecting as connection, contextlib.suppress(ConnectionError):
            connection.sendall(garbage)
            assert b"Traceback" not in connection.recv(1000)
    assert got(server, "/api/runs")["runs"]


def test_unchanged_table_is_not_sent_twice(server: Server) -> None:
    answer, _ = ask(server, "/api/runs")
    tag = answer.getheader("ETag")
    assert tag
    own = {"Host": f"127.0.0.1:{server.port}"}
    again, body = ask(server, "/api/runs", headers={**own, "If-None-Match": tag})
    assert (again.status, body) == (304, b"")


def test_nothing_in_a_run_is_written(server: Server, catalog: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size)
            for run in ("run-a", "run-b")
            for path in (catalog / run).rglob("*")
        }

    before = state()
    for path in (*PAGES, *STATIC, *WAYS_OUT):
        ask(server, path)
    assert state() == before


def test_it_listens_on_loopback_alone(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    wanted = f":{server.port:04X}"
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[1].endswith(wanted) and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F{wanted}"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can ask as another user")
def test_another_user_of_the_machine_is_refused(server: Server) -> None:
    program = (
        "import os, socket, sys\n"
        "connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "connection.close()\n"  # everything is imported now
        "os.setuid(65534)\n"
        "connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "connection.sendall(f'GET /api/runs HTTP/1.1\\r\\nHost: 127.0.0.1:{sys.argv[1]}\\r\\n\\r\\n'.encode())\n"
        "print(connection.makefile('rb').readline())\n"
    )
    words = [sys.executable, "-c", program, str(server.port)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "b'HTTP/1.1 403 Forbidden\\r\\n'\n"


def test_port_in_use_is_one_line(server: Server, catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--catalog", str(catalog), "--port", str(server.port)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"port {server.port} of 127.0.0.1 is in use: choose another with --port" in said


def test_ctrl_c_ends_it_cleanly_and_it_imports_neither_torch_nor_runnable(catalog: Path) -> None:
    program = (
        "import sys; from lockstep.cli import main; status = main(sys.argv[1:]);"
        "print([name for name in ('torch', 'runnable', 'pydantic', 'rich') if name in sys.modules]);"
        "sys.exit(status)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "ui", "--catalog", str(catalog), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process:
        address = process.stdout.readline().split()[0]
        port = int(address.rstrip("/").rpartition(":")[2])
        with socket.create_connection(
            ("127.0.0.1", port), timeout=60
        ) as connection:  # kept open over the end
            connection.sendall(f"GET /report?run=run-a HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.strip() == "[]"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Run]:
    """A run that a process holds: this one."""
    run = sample_run.build(tmp_path / "catalog")
    run.results.unlink()
    run.events.unlink()
    summary = {"dataset": "digits", "model": "mlp", "strategy": "ddp", "world_size": 2}
    events.append(run, "created", run_id=run.run_id, tag="live", parent=None, summary=summary)
    events.append(run, "started", attempt=1, process=status.process_identity())
    descriptor = status.hold(run)
    yield run
    if run.lock.exists():
        status.release(run, descriptor)


def test_running_run_is_sent_step_by_step_and_a_torn_line_waits_for_its_end(running: Run) -> None:
    lines = sample_metrics.write(running, steps=50, epochs_of=10)
    whole = [running.metrics_file(rank).read_bytes() for rank in (0, 1)]
    with serving(running.catalog) as server:
        ask_after = f"/api/runs/{running.run_id}?after={{}}&attempt=1"
        running.metrics_file(0).write_bytes(whole[0][: whole[0].index(b'"step": 21,')])
        running.metrics_file(1).write_bytes(whole[1][: whole[1].index(b'"step": 18,') + 30])
        first = got(server, ask_after.format(0))
        assert (first["status"], first["anew"], first["steps"]) == ("running", True, 330)
        assert first["figures"]["runs"][0]["last"] == list(range(1, 18)), "up to what every rank has written"
        (epochs,) = (
            line["steps"] for line in first["figures"]["charts"]["loss"]["lines"] if line["split"] == "train"
        )
        assert epochs == [10]
        running.metrics_file(1).write_bytes(whole[1])
        second = got(server, ask_after.format(17))
        assert second["figures"]["runs"][0]["first"] == [18, 19, 20]
        assert not second["anew"]
        running.metrics_file(0).write_bytes(whole[0])
        third = got(server, ask_after.format(20))
        kept = third["figures"]["charts"]["loss"]["lines"]
        loss = next(line["values"] for line in kept if line["split"] == "steps")
        mean = [sum(line["loss"] for line in step) / 2 for step in zip(*lines, strict=True)]
        assert loss == pytest.approx(mean[20:], rel=1e-8)
        assert next(line["steps"] for line in kept if line["split"] == "train")[-3:] == [30, 40, 50]
        assert got(server, ask_after.format(50))["figures"]["runs"][0]["last"] == []


def test_epoch_whose_line_comes_after_its_last_step_was_sent_is_not_lost(running: Run) -> None:
    sample_metrics.write(running, steps=900, epochs_of=600)
    whole = [running.metrics_file(rank).read_bytes() for rank in (0, 1)]
    for rank in (0, 1):
        running.metrics_file(rank).write_bytes(whole[rank][: whole[rank].index(b'{"kind": "epoch"')])
    with serving(running.catalog) as server:
        first = got(server, f"/api/runs/{running.run_id}")
        assert first["figures"]["runs"][0]["last"][-1] == 600
        assert [line["split"] for line in first["figures"]["charts"]["loss"]["lines"]] == ["steps"]
        for rank in (0, 1):
            running.metrics_file(rank).write_bytes(whole[rank])
        told = got(server, f"/api/runs/{running.run_id}?after=600&attempt=1")
    lines = {line["split"]: line["steps"] for line in told["figures"]["charts"]["loss"]["lines"]}
    assert lines == {"steps": None, "train": [600], "validation": [600]}
    assert told["figures"]["runs"][0]["first"] == list(range(601, 901))


def test_new_attempt_is_sent_from_its_beginning(running: Run) -> None:
    sample_metrics.write(running, steps=50)
    with serving(running.catalog) as server:
        sample_metrics.write(running, steps=60, first=31, attempt=2, loss=7.0)
        told = got(server, f"/api/runs/{running.run_id}?after=50&attempt=1")
    assert told["anew"]
    assert told["attempt"] == 2
    assert told["figures"]["runs"][0]["last"] == list(range(1, 61))
    loss = told["figures"]["charts"]["loss"]["lines"][0]["values"]
    assert min(loss[30:]) > 7 > max(loss[:30])


def test_end_of_a_run_shows_at_once(running: Run) -> None:
    with serving(running.catalog) as server:
        assert got(server, "/api/runs")["runs"][0]["status"] == "running"
        events.append(running, "finished", status="failed", cause="hang", message="rank 1 <b>", rank=1)
        told = got(server, f"/api/runs/{running.run_id}")
    assert (told["status"], told["cause"], told["message"], told["rank"]) == (
        "failed",
        "hang",
        "rank 1 <b>",
        1,
    )


def test_no_recorded_control_character_or_turned_writing_reaches_a_page(running: Run) -> None:
    bad = "\x1b]0;x\x07 \x9b31m \u202eevil\u2066 \u200b"
    running.events.unlink()
    summary = {"dataset": bad, "model": bad, "strategy": bad, "world_size": 2}
    events.append(running, "created", run_id=running.run_id, tag=bad, parent=None, summary=summary)
    events.append(running, "started", attempt=1, process=status.process_identity())
    events.append(running, "finished", status="failed", cause=bad, message=bad, rank=1)
    running.rank_log(0).write_text(bad)
    with serving(running.catalog) as server:
        told = [got(server, path) for path in ("/api/runs", f"/api/runs/{running.run_id}")]
        page = ask(server, f"/run/{running.run_id}")[1].decode()
    text = json.dumps(told, ensure_ascii=False) + page.replace("\n", "")
    assert text.isprintable()
    assert "\\x1b]0;x" in told[0]["runs"][0]["tag"]
    assert "\\x202eevil" in told[1]["message"]


def test_run_before_its_first_step_has_a_live_page(running: Run) -> None:
    os.truncate(running.metrics_file(0), 0)
    with serving(running.catalog) as server:
        told = got(server, f"/api/runs/{running.run_id}")
        assert told["figures"]["runs"][0]["first"] == []
        assert ask(server, f"/run/{running.run_id}")[0].status == 200


def test_empty_catalog_is_an_empty_table(tmp_path: Path) -> None:
    with serving(tmp_path / "nothing here") as server:
        assert got(server, "/api/runs") == {"runs": []}
        assert ask(server, "/")[0].status == 200
