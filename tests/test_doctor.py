"""`otel-tracker doctor`, run as a user runs it, against the real Collector and the real Jaeger.

Each way of being broken is made, and where the doctor names a line that mends it, that line is
taken and the doctor runs again. What the engines cannot do (hang, lie, drip) real sockets do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import certifi
import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased

from otel_tracker.doctor.configuration import near_misses
from otel_tracker.doctor.destinations import Collector as CollectorFigures
from otel_tracker.doctor.destinations import parse_figures
from otel_tracker.doctor.discretion import shown_url
from otel_tracker.doctor.probe import measured_share
from otel_tracker.doctor.report import Hop, Report, Setting
from otel_tracker.doctor.target import target_of
from tests.engines import AUTH, Collector, Jaeger, engines_or_skip, free_port, missing
from tests.otlp import ROOT

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
TIMEOUT: Final = "OTEL_EXPORTER_OTLP_TIMEOUT"
CERTIFICATE: Final = "OTEL_EXPORTER_OTLP_CERTIFICATE"
JAEGER: Final = "OTEL_TRACKER_JAEGER_URL"
METRICS: Final = "OTEL_TRACKER_COLLECTOR_METRICS_URL"
DASHBOARD: Final = "OTEL_TRACKER_URL"
TOKEN: Final = "OTEL_TRACKER_TOKEN"
OPEN_SESAME: Final = "open-sesame-4711"

BOUND_S: Final = 25
"""The promised 20 s, and what a process takes to start on a busy machine."""


# --- running it -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examined:
    """What one run of the command said."""

    code: int
    report: dict[str, Any]
    output: str
    environ: Mapping[str, str]

    def hop(self, name: str) -> dict[str, Any]:
        (hop,) = [hop for hop in self.report["hops"] if hop["hop"] == name]
        return dict(hop)

    @property
    def states(self) -> dict[str, str]:
        return {hop["hop"]: hop["state"] for hop in self.report["hops"]}

    @property
    def broken(self) -> dict[str, Any]:
        """The first broken hop."""
        assert (self.code, self.report["whole"]) == (1, False)
        return next(hop for hop in self.report["hops"] if hop["state"] == "broken")

    @property
    def environment_with_its_fix(self) -> dict[str, str]:
        """What the first broken hop says to export, on top of what was set."""
        lines = re.findall(r"^export (\w+)=(.*)$", self.broken["fix"], re.MULTILINE)
        assert lines, self.broken["fix"]
        return {**self.environ, **{name: value.strip('"') for name, value in lines}}


def run(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    ours = re.compile(r"OTEL|.*_proxy$|.*_CA_BUNDLE$", re.IGNORECASE)
    clean = {k: v for k, v in os.environ.items() if not ours.match(k)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "otel_tracker", "doctor", *arguments],
        env={**clean, **environ},
        cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip


def examine(environ: Mapping[str, str]) -> Examined:
    """Runs the command as a program; it prints JSON, and nothing on stderr."""
    done = run(environ, "--json")
    assert done.stderr == ""
    return Examined(done.returncode, json.loads(done.stdout), done.stdout, environ)


def examine_all(*environs: Mapping[str, str]) -> list[Examined]:
    """Several runs, some at once: they wait as much as they work."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(examine, environs))


def mend(examined: list[Examined]) -> None:
    """Each one's fix makes the way whole."""
    for one in examine_all(*(broken.environment_with_its_fix for broken in examined)):
        assert (one.code, one.report["whole"]) == (0, True), one.report["hops"]


# --- the engines ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A Jaeger, a Collector before it, and the environment of an application beside them."""

    jaeger: Jaeger
    collector: Collector

    @property
    def base(self) -> dict[str, str]:
        return {
            JAEGER: self.jaeger.ui_url,
            METRICS: self.collector.metrics_url,
            "OTEL_SERVICE_NAME": "notes",
        }

    def by_http(self, **more: str) -> dict[str, str]:
        return {**self.base, ENDPOINT: self.collector.http_url, **more}

    def by_grpc(self, **more: str) -> dict[str, str]:
        endpoint = f"http://{self.collector.grpc}"
        return {**self.base, PROTOCOL: "grpc", ENDPOINT: endpoint, **more}


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    engines_or_skip()
    folder = tmp_path_factory.mktemp("way")
    with Jaeger(folder) as jaeger, Collector(folder, jaeger=jaeger) as collector:
        yield Way(jaeger, collector)


@pytest.fixture(scope="module")
def guarded(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """The same with a Collector that wants a token."""
    folder = tmp_path_factory.mktemp("guarded")
    env = {"OTELCOL_TOKEN": OPEN_SESAME}
    with Collector(folder, env, [AUTH], way.jaeger) as collector:
        yield Way(way.jaeger, collector)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine that nobody trusts yet, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        missing("openssl is not installed (Debian: apt-get install openssl)")
    folder = tmp_path_factory.mktemp("authority")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        [str(openssl), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", names, "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return certificate, key


@pytest.fixture(scope="module")
def secured(
    way: Way, authority: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Way]:
    """The same with a Collector that speaks TLS."""
    certificate, key = authority
    folder = tmp_path_factory.mktemp("secured")
    tls = {"tls": {"cert_file": str(certificate), "key_file": str(key)}}
    config = folder / "tls.yaml"
    protocols = {"grpc": tls, "http": tls}
    config.write_text(json.dumps({"receivers": {"otlp": {"protocols": protocols}}}))  # YAML, too
    with Collector(folder, extra_config=[config], jaeger=way.jaeger) as collector:
        yield Way(way.jaeger, collector)


# --- sockets that do what no engine does ----------------------------------------------------------


@contextmanager
def listening(
    answer: Callable[[socket.socket], None] = lambda _: None, address: tuple[str, int] | None = None
) -> Iterator[int]:
    """A port where each connection is taken and given to `answer`, and kept until the end."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(address or ("127.0.0.1", 0)))
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                stack.callback(connection.close)
                threading.Thread(target=attend, args=(connection,), daemon=True).start()

        def attend(connection: socket.socket) -> None:
            try:
                answer(connection)
            except OSError:
                return  # the doctor has hung up

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def drip(connection: socket.socket) -> None:
    """An HTTP answer that never ends, one byte after the other."""
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.3)


@contextmanager
def web(respond: Callable[[BaseHTTPRequestHandler], tuple[int, str, str]]) -> Iterator[str]:
    """A web server whose answers (status, content type, body) `respond` makes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the names that http.server asks for
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, body = respond(self)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def dashboard(*, has_the_probe: bool = True, token: str = "") -> Iterator[str]:
    """The dashboard service's two routes, as docs/doctor.md asks for them."""

    def respond(request: BaseHTTPRequestHandler) -> tuple[int, str, str]:
        if request.path == "/healthz":
            return 200, "application/json", "{}"
        if token and request.headers["Authorization"] != f"Bearer {token}":
            return 401, "application/json", "{}"
        asked = re.fullmatch(r"/api/transactions/([0-9a-f-]{36})", request.path)
        if asked and has_the_probe:
            return 200, "application/json", json.dumps({"transaction_id": asked[1]})
        return 404, "application/json", "{}"

    with web(respond) as url:
        yield url


# --- the way is whole -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_whole_way(way: Way, protocol: str) -> None:
    """Over either protocol the probe is found at each hop, and is a real transaction in Jaeger."""
    examined = examine(way.by_grpc() if protocol == "grpc" else way.by_http())
    assert (examined.code, examined.report["whole"]) == (0, True)
    assert examined.states == {
        "exporter": "ok", "endpoint": "ok", "collector": "ok", "jaeger": "ok",
        "dashboard": "skipped",
    }  # fmt: skip
    assert "accepted 2 spans" in examined.hop("collector")["finding"]
    probe = examined.report["probe"]
    assert probe["transaction_id"].replace("-", "") == probe["trace_id"]
    spans = {span.name: span for span in way.jaeger.traces(probe["trace_id"]) or []}
    assert set(spans) == {"doctor", "probe"}
    root, stage = spans["doctor"], spans["probe"]
    assert (root.parent_id, stage.parent_id) == ("", root.span_id)
    assert root.service == "otel-tracker-doctor"
    assert root.attributes["otel_tracker.outcome"] == "success"
    assert stage.attributes["otel_tracker.stage"] == "probe"


def test_straight_to_jaeger(way: Way) -> None:
    """Without a Collector the way is whole; one that is there for others is told apart."""
    straight = way.by_grpc(**{ENDPOINT: f"http://{way.jaeger.otlp_grpc}"})
    beside = examine(straight)
    assert (beside.code, beside.states["collector"]) == (0, "skipped")
    assert "does not pass that Collector" in beside.hop("collector")["finding"]
    without = examine({**straight, METRICS: f"http://127.0.0.1:{free_port()}/metrics"})
    assert (without.code, without.states["collector"]) == (0, "warning")
    assert without.states["jaeger"] == "ok"


def test_text_for_a_person(way: Way) -> None:
    """The verdict is the first line; then come the hops with their marks, and the configuration."""
    done = run(way.by_http())
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "The way to Jaeger is whole: the probe arrived."
    assert [line[0] for line in lines[2:5]] == ["✓", "✓", "✓"]
    row = rf"^  endpoint +{re.escape(way.collector.http_url)} +{ENDPOINT}$"
    assert re.search(row, done.stdout, re.MULTILINE)
    assert re.search(r"^  stall_after +60$", done.stdout, re.MULTILINE)
    assert "opentelemetry-sdk " in done.stdout


def test_text_of_a_break() -> None:
    """What is broken and the line that mends it come before everything else."""
    done = run({})
    assert done.returncode == 1
    verdict, _, exporter, *rest = done.stdout.splitlines()
    assert verdict == "The way to Jaeger is broken at the exporter."
    assert exporter.startswith("✗ exporter")
    assert rest[rest.index("To mend it:") + 1] == f"  export {ENDPOINT}=http://localhost:4318"


def test_a_terminal_without_marks() -> None:
    """Where the terminal's encoding has no ✗, other marks stand for it, and nothing is lost."""
    done = run({"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (1, "")
    assert "\nx exporter" in done.stdout


def test_the_json_is_as_documented(way: Way) -> None:
    """docs/doctor.md names each key, hop and state."""
    report = examine(way.by_http()).report
    text = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert list(report) == ["whole", "configuration", "hops", "hints", "probe", "versions"]
    assert set(report) | set(report["probe"]) <= named
    assert {"exporter", "endpoint", "collector", "jaeger", "dashboard"} <= named
    assert {"ok", "warning", "broken", "unknown", "skipped"} <= named
    for setting in report["configuration"]:
        assert set(setting) == {"name", "value", "source"} <= named
    for hop in report["hops"]:
        assert set(hop) == {"hop", "state", "finding", "fix"} <= named


# --- nothing is sent ------------------------------------------------------------------------------


def test_the_exporter_sends_nothing(way: Way) -> None:
    """Each reason why no span leaves is named, with the line that lets them."""
    cases = {
        "OTEL_SDK_DISABLED=true": {"OTEL_SDK_DISABLED": "true"},
        "OTEL_TRACES_EXPORTER=none": {"OTEL_TRACES_EXPORTER": "none"},
        "printed and go nowhere else": {"OTEL_TRACES_EXPORTER": "console"},
        "names zipkin, which is not installed": {"OTEL_TRACES_EXPORTER": "otlp,zipkin"},
        "always_off: no transaction is sampled": {"OTEL_TRACES_SAMPLER": "always_off"},
        "traceidratio with 0: no transaction is sampled": {
            "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0",
        },
    }  # fmt: skip
    examined = examine_all(*(way.by_http(**variables) for variables in cases.values()))
    for finding, one in zip(cases, examined, strict=True):
        assert one.broken["hop"] == "exporter"
        assert finding in one.broken["finding"]
    mend(examined)


def test_nothing_is_configured() -> None:
    """The newcomer's case: no exporter at all."""
    broken = examine({}).broken
    assert (broken["hop"], broken["fix"]) == (
        "exporter",
        f"export {ENDPOINT}=http://localhost:4318",
    )
    assert "nothing is configured" in broken["finding"]


def test_a_name_with_a_slip() -> None:
    """A variable that nothing reads is told apart from none, and its near name is said."""
    examined = examine({"OTEL_EXPORTER_OTLP_ENPOINT": "http://user:s3cr3tpass@127.0.0.1:4318"})
    assert "OTEL_EXPORTER_OTLP_ENPOINT is set, which nothing reads" in examined.broken["finding"]
    assert examined.broken["fix"] == f'export {ENDPOINT}="$OTEL_EXPORTER_OTLP_ENPOINT"'
    assert "s3cr3tpass" not in examined.output


def test_the_tracker_is_disabled() -> None:
    """OTEL_TRACKER_DISABLED makes the tracker do nothing, and is said to."""
    broken = examine({ENDPOINT: "http://localhost:4318", "OTEL_TRACKER_DISABLED": "yes"}).broken
    assert (broken["hop"], broken["fix"]) == ("exporter", "unset OTEL_TRACKER_DISABLED")


def test_a_certificate_that_is_not_there() -> None:
    """A file that cannot be read is found before anything is sent."""
    broken = examine({ENDPOINT: "https://127.0.0.1:4318", CERTIFICATE: "/nowhere.pem"}).broken
    assert broken["finding"] == f"{CERTIFICATE} names /nowhere.pem, and there is no such file"


def test_a_share_is_sampled(way: Way) -> None:
    """A ratio below 1 is a warning with its share, measured on ids of ours, and breaks nothing."""
    examined = examine(
        way.by_http(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.25")
    )
    assert (examined.code, examined.states["exporter"]) == (0, "warning")
    share = re.search(r"about ([\d.]+)% of transactions", examined.hop("exporter")["finding"])
    assert share is not None
    assert 23 < float(share[1]) < 27


def test_the_measured_share() -> None:
    """All, none and half of our ids, by the SDK's own samplers."""
    assert measured_share(ParentBased(ALWAYS_ON)) == 1
    assert measured_share(ALWAYS_OFF) == 0
    assert 0.47 < measured_share(TraceIdRatioBased(0.5)) < 0.53


# --- the endpoint does not take it ----------------------------------------------------------------


def test_nothing_listens() -> None:
    """A port where nobody listens is named at once, without the exporter's patience."""
    place = f"127.0.0.1:{free_port()}"
    environ = {ENDPOINT: f"http://{place}", TIMEOUT: "60"}
    for examined in examine_all(environ, {**environ, PROTOCOL: "grpc"}):
        assert examined.broken["hop"] == "endpoint"
        assert f"nothing listens on {place}" in examined.broken["finding"]
        assert f"export {ENDPOINT}=http://<host>:431" in examined.broken["fix"]


def test_the_usual_port_listens() -> None:
    """Of the usual ports, the one of that host that does listen is said, with what it speaks."""
    host = "127.77.0.1"  # an address of loopback whose 4317 is not anybody's
    with listening(address=(host, 4317)):
        broken = examine({ENDPOINT: f"http://{host}:4318"}).broken
    assert "4317 (gRPC) does listen" in broken["finding"]
    assert broken["fix"] == f"export {ENDPOINT}=http://{host}:4317\nexport {PROTOCOL}=grpc"


def test_a_host_that_does_not_resolve() -> None:
    """A name that no resolver knows (.invalid is reserved for that)."""
    broken = examine({ENDPOINT: "http://collector.invalid:4318"}).broken
    assert "the host name collector.invalid does not resolve" in broken["finding"]
    assert f"export {ENDPOINT}=http://" in broken["fix"]


def test_a_wrong_path(way: Way) -> None:
    """A path that is missing, or there twice, is put right."""
    url = way.collector.http_url
    examined = examine_all(
        {**way.base, TRACES_ENDPOINT: url}, {**way.base, ENDPOINT: f"{url}/v1/traces"}
    )
    for one in examined:
        assert one.broken["hop"] == "endpoint"
        assert "404" in one.broken["finding"]
        assert "the path is wrong; /v1/traces is there" in one.broken["finding"]
    mend(examined)


def test_an_address_without_scheme(way: Way) -> None:
    """Over HTTP `host:port` is no address; over gRPC it means TLS, which nobody there speaks."""
    place = way.collector.http_url.removeprefix("http://")
    over_http, over_grpc, with_user = examine_all(
        way.by_http(**{ENDPOINT: place}),
        way.by_grpc(**{ENDPOINT: way.collector.grpc}),
        {ENDPOINT: "me:s3cr3tpass@127.0.0.1:4318"},
    )
    for one in (over_http, with_user):
        assert "is no http:// or https:// address" in one.broken["finding"]
    assert "s3cr3tpass" not in with_user.output
    assert "speaks plain text, and the exporter speaks TLS" in over_grpc.broken["finding"]
    mend([over_http, over_grpc])


def test_grpc_against_an_http_port(way: Way) -> None:
    """Recognised by the answer to HTTP/2's preface, and mended by the other protocol."""
    examined = examine_all(
        *(
            {**way.base, variable: way.collector.http_url, PROTOCOL: "grpc"}
            for variable in (ENDPOINT, TRACES_ENDPOINT)
        )
    )
    for one in examined:
        assert "speaks HTTP/1.1, and the exporter sends gRPC to it" in one.broken["finding"]
    mend(examined)


def test_http_against_a_grpc_port(way: Way) -> None:
    """Recognised by the HTTP/2 frames that answer a POST, and mended by the other protocol."""
    examined = examine_all(
        *(
            {**way.base, variable: f"http://{way.collector.grpc}"}
            for variable in (ENDPOINT, TRACES_ENDPOINT)
        )
    )
    for one in examined:
        assert "speaks gRPC, and the exporter sends HTTP to it" in one.broken["finding"]
    mend(examined)


def test_a_web_page_instead_of_a_collector(way: Way) -> None:
    """Jaeger's own page answers 200 to spans: the exporter believes it, the doctor does not."""
    broken = examine({**way.base, ENDPOINT: way.jaeger.ui_url}).broken
    assert "answers with a web page" in broken["finding"]
    assert broken["fix"] == f"export {ENDPOINT}=http://<host>:4318"


def test_a_redirect_is_no_success() -> None:
    """Newer exporters take a redirect for success; the span goes nowhere."""
    with web(lambda _: (302, "text/plain", "")) as url:
        broken = examine({ENDPOINT: url}).broken
    assert "302" in broken["finding"]
    assert "redirects" in broken["finding"]


def test_refused_credentials(guarded: Way) -> None:
    """A Collector that wants a token: that it was refused is said, and with the token it works."""
    wrong = "authorization=Bearer%20a-wrong-guess"
    by_http, by_grpc = guarded.by_http(), guarded.by_grpc()
    for environ, code in ((by_http, "401"), (by_grpc, "UNAUTHENTICATED")):
        for examined in examine_all(environ, {**environ, HEADERS: wrong}):
            assert examined.broken["hop"] == "endpoint"
            assert "the credentials are refused" in examined.broken["finding"]
            assert code in examined.broken["finding"]
            assert examined.broken["fix"] == f'export {HEADERS}="authorization=Bearer%20<token>"'
            assert "a-wrong-guess" not in examined.output
    right = {HEADERS: f"authorization=Bearer%20{OPEN_SESAME}"}
    for mended in examine_all({**by_http, **right}, {**by_grpc, **right}):
        assert mended.code == 0
        assert OPEN_SESAME not in mended.output


def test_plain_text_against_tls(secured: Way, authority: tuple[Path, Path]) -> None:
    """Over either protocol first the scheme is wrong, then the authority, then all is well."""
    examined = examine_all(secured.by_http(), secured.by_grpc())
    for one in examined:
        assert "speaks TLS, and the exporter sends plain text" in one.broken["finding"]
        assert one.broken["fix"].startswith(f"export {ENDPOINT}=https://127.0.0.1:")
    secure = [one.environment_with_its_fix for one in examined]
    for one in examine_all(*secure):
        assert "is not trusted" in one.broken["finding"]
        assert one.broken["fix"].startswith(f"export {CERTIFICATE}=")
    for one in examine_all(*({**environ, CERTIFICATE: str(authority[0])} for environ in secure)):
        assert (one.code, one.states["endpoint"]) == (0, "ok")


def test_a_bundle_that_wins_over_our_certificate(
    secured: Way, authority: tuple[Path, Path]
) -> None:
    """Newer HTTP exporters heed REQUESTS_CA_BUNDLE instead of OTEL_EXPORTER_OTLP_CERTIFICATE."""
    endpoint = secured.collector.http_url.replace("http:", "https:")
    certificate = {CERTIFICATE: str(authority[0]), "REQUESTS_CA_BUNDLE": certifi.where()}
    certificate[TIMEOUT] = "2"  # the exporter would try for longer
    examined = examine(secured.by_http(**{ENDPOINT: endpoint}, **certificate))
    if examined.code == 0:
        return  # an exporter that heeds ours, as that of 1.30 does
    assert f"REQUESTS_CA_BUNDLE wins over {CERTIFICATE}" in examined.broken["finding"]
    mend([examined])


def test_tls_against_plain_text(way: Way) -> None:
    """The other way round: https:// in front of a port that speaks plain text."""
    environs = [
        {**environ, ENDPOINT: environ[ENDPOINT].replace("http:", "https:")}
        for environ in (way.by_http(), way.by_grpc())
    ]
    examined = examine_all(*environs)
    for one in examined:
        assert "speaks plain text, and the exporter speaks TLS to it" in one.broken["finding"]
    mend(examined)


def test_an_endpoint_that_never_answers() -> None:
    """It accepts the connection and that is all: said within seconds, over either protocol."""
    with listening() as port:
        endpoint = {ENDPOINT: f"http://127.0.0.1:{port}", TIMEOUT: "60"}
        for one in examine_all(endpoint, {**endpoint, PROTOCOL: "grpc"}):
            assert "accepts the connection and never answers" in one.broken["finding"]


def test_a_proxy_in_the_way(way: Way) -> None:
    """HTTP exporters go through HTTP_PROXY even to this machine; NO_PROXY mends it."""
    proxy = f"http://user:s3cr3tpass@127.0.0.1:{free_port()}"
    examined = examine(way.by_http(HTTP_PROXY=proxy))
    assert "through the proxy" in examined.broken["finding"]
    assert "s3cr3tpass" not in examined.output
    mend([examined])


# --- behind the endpoint --------------------------------------------------------------------------


def test_jaeger_is_down_behind_the_collector(tmp_path: Path) -> None:
    """The Collector accepts; that it cannot send on is seen in its own figures."""
    engines_or_skip()
    jaeger = Jaeger(tmp_path)  # never started
    with Collector(tmp_path, jaeger=jaeger) as collector:
        examined = examine(Way(jaeger, collector).by_http())
    assert examined.states["endpoint"] == "ok"
    assert examined.broken["hop"] == "collector"
    assert "does not get them to Jaeger" in examined.broken["finding"]
    assert "otlp_grpc/jaeger has sent 0, has work waiting" in examined.broken["finding"]
    assert "export JAEGER_OTLP_ENDPOINT=" in examined.broken["fix"]
    assert examined.states["jaeger"] == "unknown"


def test_jaeger_is_not_where_it_is_asked(way: Way, tmp_path: Path) -> None:
    """Nobody there, or not Jaeger: unknown and not whole. Another Jaeger: broken, after 10 s."""
    with Jaeger(tmp_path) as other:
        urls = (f"http://127.0.0.1:{free_port()}", way.collector.http_url, other.ui_url)
        nobody, no_jaeger, another = examine_all(*(way.by_http(**{JAEGER: url}) for url in urls))
    for examined in (nobody, no_jaeger):
        assert (examined.code, examined.report["whole"]) == (1, False)
        assert (examined.states["collector"], examined.states["jaeger"]) == ("ok", "unknown")
        assert "could not be asked" in examined.hop("jaeger")["finding"]
        assert examined.hop("jaeger")["fix"] == f"export {JAEGER}=http://<jaeger>:16686"
    assert "is not Jaeger" in no_jaeger.hop("jaeger")["finding"]
    assert (another.broken["hop"], another.states["collector"]) == ("jaeger", "ok")
    assert f"Jaeger at {other.ui_url} does not have the probe" in another.broken["finding"]
    assert f"export {JAEGER}=" in another.broken["fix"]


# --- the dashboard service ------------------------------------------------------------------------


def test_the_dashboard_has_it(way: Way) -> None:
    """Asked with the token, which nothing shows."""
    with dashboard(token=OPEN_SESAME) as url:
        refused = examine(way.by_http(**{DASHBOARD: url}))
        assert refused.broken["hop"] == "dashboard"
        assert f"{TOKEN} is not set" in refused.broken["finding"]
        assert f"export {TOKEN}=" in refused.broken["fix"]
        examined = examine(way.by_http(**{DASHBOARD: url, TOKEN: OPEN_SESAME}))
    assert (examined.code, examined.states["dashboard"]) == (0, "ok")
    assert OPEN_SESAME not in examined.output


def test_the_dashboard_has_not_heard_of_it(way: Way) -> None:
    """Up, and without the probe: a warning, since the way to Jaeger is whole."""
    with dashboard(has_the_probe=False) as url:
        examined = examine(way.by_http(**{DASHBOARD: url}))
    assert (examined.code, examined.states["dashboard"]) == (0, "warning")
    assert "the Collector does not feed it" in examined.hop("dashboard")["finding"]


def test_the_dashboard_is_down(way: Way) -> None:
    """Named, and never there: broken."""
    examined = examine(way.by_http(**{DASHBOARD: f"http://127.0.0.1:{free_port()}"}))
    assert examined.states["jaeger"] == "ok"
    assert examined.broken["hop"] == "dashboard"
    assert DASHBOARD in examined.broken["fix"]


# --- secrets, time, oddities ----------------------------------------------------------------------


def test_no_secret_is_shown() -> None:
    """Not from the environment, and not from a server that repeats them in its refusal."""
    secrets = {
        HEADERS: "authorization=Bearer%20header-secret-1,x-api-key=header-secret-2",
        TOKEN: "token-secret-3",
        "OTEL_TRACKER_HASH_KEY": "hash-secret-4",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment=x,db.password=resource-secret-5",
        JAEGER: "http://me:url-secret-6@127.0.0.1:9/?token=query-secret-7",
        METRICS: "http://me:url-secret-8@127.0.0.1:9/metrics",
        "HTTPS_PROXY": "http://me:url-secret-9@127.0.0.1:9",
    }

    def repeat(request: BaseHTTPRequestHandler) -> tuple[int, str, str]:
        told = f"{request.headers['Authorization']} and {request.headers['X-Api-Key']}"
        return 403, "text/plain", f"I do not know {told}"

    with web(repeat) as url:
        endpoint = url.replace("://", "://me:url-secret-10@")
        environ = {**secrets, ENDPOINT: endpoint}
        examined = examine(environ)
        text = run(environ).stdout
    assert 'says "I do not know' in examined.broken["finding"]
    assert "the headers sent were authorization, x-api-key" in examined.broken["finding"]
    for output in (examined.output, text):
        assert "authorization, x-api-key (values not shown)" in output
        assert re.findall(r"\w+-secret-\d+", output) == []


def test_all_that_is_slow_is_bounded() -> None:
    """Everybody drips or hangs at once, and the command still ends in time."""
    with (
        listening(drip) as slow,
        listening() as silent,
        web(lambda _: (200, "application/x-protobuf", "")) as taken,
    ):
        started = time.monotonic()
        examined = examine(
            {
                ENDPOINT: taken,
                METRICS: f"http://127.0.0.1:{silent}/metrics",
                JAEGER: f"http://127.0.0.1:{slow}",
                DASHBOARD: f"http://127.0.0.1:{slow}",
            }
        )
        took = time.monotonic() - started
    assert examined.code == 1
    assert examined.states == {
        "exporter": "ok", "endpoint": "ok", "collector": "warning", "jaeger": "unknown",
        "dashboard": "broken",
    }  # fmt: skip
    assert took < 20


def test_the_source_of_each_value() -> None:
    """A value for traces wins over the general one, and each says which variable it came from."""
    examined = examine(
        {
            ENDPOINT: "http://127.0.0.1:1",
            TRACES_ENDPOINT: "http://127.0.0.1:2/v1/traces",
            TIMEOUT: "7",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=notes,host.name=here",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_TRACKER_STALL_AFTER": "90",
            "OTEL_TRACKER_STALL_AFTER_MEMORY": "900",
        }
    )
    rows = {row["name"]: (row["value"], row["source"]) for row in examined.report["configuration"]}
    assert rows["endpoint"] == ("http://127.0.0.1:2/v1/traces", TRACES_ENDPOINT)
    assert rows["timeout"] == ("7", TIMEOUT)
    assert rows["protocol"] == ("http/protobuf", "default")
    assert rows["service_name"] == ("notes", "OTEL_RESOURCE_ATTRIBUTES")
    assert rows["bsp_schedule_delay"] == ("100 (ms)", "OTEL_BSP_SCHEDULE_DELAY")
    assert rows["bsp_max_queue_size"] == ("65536", "default")
    assert rows["stall_after"] == ("90", "OTEL_TRACKER_STALL_AFTER")
    assert rows["stall_after_memory"] == ("900", "OTEL_TRACKER_STALL_AFTER_MEMORY")
    assert rows["jaeger_url"] == ("http://localhost:16686", "default")
    assert "nothing listens on 127.0.0.1:2" in examined.broken["finding"]


def test_hints() -> None:
    """What breaks nothing here and is a slip all the same."""
    cases = {
        "no protocol that is supported here, so http/protobuf is used": (PROTOCOL, "GRPC"),
        "in seconds, not milliseconds": (TIMEOUT, "10000"),
        "recognize sampler sometimes": ("OTEL_TRACES_SAMPLER", "sometimes"),
        "OTEL_TRACKER_SETTLE 'soon' is no good": ("OTEL_TRACKER_SETTLE", "soon"),
        "a part that is not name=value": (HEADERS, "Authorization: Bearer some-secret-1"),
        "did you mean OTEL_SERVICE_NAME?": ("OTEL_SERVICE_NAM", "notes"),
    }
    endpoint = f"http://127.0.0.1:{free_port()}"
    examined = examine_all(*({ENDPOINT: endpoint, k: v} for k, v in cases.values()))
    for hint, one in zip(cases, examined, strict=True):
        assert [said for said in one.report["hints"] if hint in said], one.report["hints"]
        assert "some-secret-1" not in one.output


def test_near_misses_are_few() -> None:
    """Names that OpenTelemetry or the tracker reads are never taken for slips."""
    assert near_misses({"OTEL_EXPORTER_OTLP_ENPOINT": "x", "otel_service_name": "x"}) == {
        "OTEL_EXPORTER_OTLP_ENPOINT": ENDPOINT, "otel_service_name": "OTEL_SERVICE_NAME",
    }  # fmt: skip
    read = (
        ENDPOINT, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_PROPAGATORS", "OTEL_LOG_LEVEL",
        "OTEL_TRACKER_URL", "OTEL_TRACKER_READ_URL", "OTEL_TRACKER_STAGES",
        "OTEL_TRACKER_TRANSACTIONS", "OTEL_TRACKER_STALL_AFTER_FETCH",
        "OTEL_TRACKER_SENSITIVE_KEYS", "OTEL_PYTHON_LOG_CORRELATION", "OTELCOL_GRPC_ENDPOINT",
    )  # fmt: skip
    assert near_misses(dict.fromkeys(read, "x")) == {}


def test_where_the_exporters_send() -> None:
    """Host, port, path and TLS as both exporters understand what is written."""

    def seen(**environ: str) -> tuple[str, int, str, bool]:
        target = target_of(environ)
        assert target is not None
        return target.host, target.port, target.path, target.is_tls

    grpc = {PROTOCOL: "grpc"}
    assert seen() == ("localhost", 4318, "/v1/traces", False)
    assert seen(**grpc) == ("localhost", 4317, "", False)
    assert seen(**{ENDPOINT: "https://h/base/"}) == ("h", 443, "/base/v1/traces", True)
    assert seen(**{TRACES_ENDPOINT: "http://h/x"}) == ("h", 80, "/x", False)
    assert seen(**{ENDPOINT: "http://[::1]:9"}) == ("::1", 9, "/v1/traces", False)
    assert seen(**grpc, **{ENDPOINT: "h:9"}) == ("h", 9, "", True)
    assert seen(**grpc, **{ENDPOINT: "h:9"}, OTEL_EXPORTER_OTLP_INSECURE="true")[3] is False
    assert seen(**grpc, **{ENDPOINT: "https://h"}, OTEL_EXPORTER_OTLP_INSECURE="true")[3] is True
    assert target_of({}, "zipkin") is None


def test_which_variable_mends() -> None:
    """The one that wins: what is set for traces, else what is set, else as the endpoint was."""
    traces = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"

    def deciding(*names: str) -> str:
        target = target_of(dict.fromkeys(names, "http://h"))
        assert target is not None
        return target.variable_for("PROTOCOL")

    assert deciding(ENDPOINT) == deciding() == PROTOCOL
    assert deciding(TRACES_ENDPOINT) == deciding(ENDPOINT, PROTOCOL, traces) == traces
    assert deciding(TRACES_ENDPOINT, PROTOCOL) == PROTOCOL


def test_figures_under_every_name_a_collector_gives_them() -> None:
    """Prometheus' names differ with the Collector's configuration; other signals do not count."""
    for suffix in ("", "_total", "__spans__total"):
        found = parse_figures(
            f'otelcol_receiver_accepted_spans{suffix}{{receiver="otlp",transport="http"}} 3\n'
            f'otelcol_receiver_accepted_spans{suffix}{{receiver="otlp",transport="grpc"}} 4\n'
            f'otelcol_exporter_sent_spans{suffix}{{exporter="otlp_grpc/jaeger"}} 5\n'
            'otelcol_exporter_queue_size{data_type="metrics",exporter="prometheus"} 9\n'
            'otelcol_exporter_queue_size{data_type="traces",exporter="new"} 1\n'
        )
        assert found is not None
        assert found.accepted == 7
        assert dict(found.sent) == {"otlp_grpc/jaeger": 5, "new": 0}
        assert dict(found.queued) == {"new": 1}
    assert parse_figures("<html>") is None


def figures(accepted: int, **exporters: tuple[int, int, int]) -> str:
    """A Collector's metrics: spans in, and for each exporter spans sent, failed, and its queue."""
    lines = [f'otelcol_receiver_accepted_spans{{receiver="otlp"}} {accepted}']
    for name, (sent, failed, queue) in exporters.items():
        lines += [
            f'otelcol_exporter_sent_spans{{exporter="{name}"}} {sent}',
            f'otelcol_exporter_send_failed_spans{{exporter="{name}"}} {failed}',
            f'otelcol_exporter_queue_size{{data_type="traces",exporter="{name}"}} {queue}',
        ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("after", "arrived", "state", "finding"),
    [
        (figures(12, jaeger=(12, 0, 0)), True, "ok", "jaeger has sent 2"),
        (figures(12, jaeger=(10, 0, 0)), False, "broken", "a processor drops the probe"),
        (figures(12, jaeger=(10, 2, 0)), False, "broken", "has failed to send 2"),
        (figures(12, jaeger=(10, 0, 1)), False, "broken", "work waiting in its queue"),
        (figures(12, jaeger=(12, 0, 0), other=(0, 2, 0)), False, "warning", "has failed to send 2"),
        (figures(12, jaeger=(12, 0, 0), other=(0, 2, 0)), True, "warning", "has failed to send 2"),
        (figures(12), False, "ok", "no exporter of it counts"),
        (figures(10, jaeger=(10, 0, 0)), True, "skipped", "does not pass that Collector"),
        (figures(10, jaeger=(10, 0, 0)), False, "warning", "does not pass that Collector"),
        (
            f'{figures(10)}\notelcol_receiver_refused_spans{{receiver="otlp"}} 2',
            False, "broken", "it refused 2 spans",
        ),
    ],
)  # fmt: skip
def test_what_a_collectors_figures_say(after: str, arrived: bool, state: str, finding: str) -> None:
    """Ten spans of others before, two of the probe since: what its figures then mean."""
    before = parse_figures(figures(10, jaeger=(10, 0, 0)))
    collector = CollectorFigures("http://c/metrics", True, before, parse_figures(after))
    hop = collector.judge(2, arrived=arrived, has_dashboard=True)
    assert (hop.state, finding in hop.finding) == (state, True), hop


def test_urls_are_shown_without_what_is_secret() -> None:
    """Neither user nor password nor query; without a scheme as well."""
    assert shown_url("http://me:hush@h:1/p?token=hush") == "http://[redacted]@h:1/p?[redacted]"
    assert shown_url("me:hush@h:1") == "[redacted]@h:1"
    assert shown_url("https://h:1/v1/traces") == "https://h:1/v1/traces"


def test_the_first_trouble_is_the_one_to_mend() -> None:
    """Of several broken hops the first leads; one that could not be asked comes after those."""
    hops = (
        Hop("exporter", "ok", "fine"),
        Hop("jaeger", "unknown", "silent", "export A=1"),
        Hop("dashboard", "broken", "down", "export B=2"),
    )
    report = Report(hops, (Setting("a", "b", "default"),))
    assert report.first_trouble is hops[2]
    assert not report.is_whole
    assert report.text().index("export B=2") < report.text().index("export A=1")


def test_the_certificate_of_the_tests_is_one(authority: tuple[Path, Path]) -> None:
    """The TLS tests stand on it: it is for this machine, and its own authority."""
    context = ssl.create_default_context(cafile=str(authority[0]))
    (subject,) = context.get_ca_certs()
    assert subject["subject"] == subject["issuer"]
