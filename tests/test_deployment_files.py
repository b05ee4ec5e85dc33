"""The files of the deployment are valid, safe by default, and documented."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from otel_tracker import semconv
from tests.engines import AUTH, CONFIG, JAEGER_CONFIG, RECORD, engine, executable
from tests.otlp import ROOT

COMPOSE: Final = ROOT / "docker-compose.yml"
PROMETHEUS: Final = ROOT / "deploy" / "prometheus.yml"
DOCUMENT: Final = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
PROJECT_IMAGE: Final = "otel-tracker:latest"


def settings(file: Path) -> dict[str, str]:
    """The environment variables of a configuration, with their defaults."""
    pairs = re.findall(r"\$\{env:(\w+)(?::-([^}]*))?\}", file.read_text(encoding="utf-8"))
    return dict(pairs)


def compose(*options: str, **env: str) -> dict[str, Any]:
    """What Docker's own compose makes of docker-compose.yml."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL", "JAEGER"))}
    done = subprocess.run(
        [engine("docker-compose"), "-f", str(COMPOSE), *options, "config", "--format", "json"],
        env={**clean, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def services(**env: str) -> dict[str, Any]:
    found: dict[str, Any] = compose("--profile", "demo", **env)["services"]
    return found


def loaded(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


# --- the Collector and Jaeger ---------------------------------------------------------------------


@pytest.mark.parametrize("overlay", [None, AUTH, RECORD], ids=["alone", "auth", "record"])
def test_the_collector_accepts_its_configuration(overlay: Path | None, tmp_path: Path) -> None:
    """The Collector's own check passes, as it is and with each of the additions."""
    command = [str(engine("otelcol")), "validate", "--config", str(CONFIG)]
    if overlay:
        command += ["--config", str(overlay)]
    env = {**os.environ, "OTELCOL_TOKEN": "t", "OTELCOL_RECORD_DIR": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_jaeger_accepts_its_configuration() -> None:
    command = [str(engine("jaeger")), "validate", "--config", str(JAEGER_CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_component_has_a_deprecated_name() -> None:
    """Names that the Collector still understands, and which a later one will not."""
    deprecated = {
        *("exporters/otlp", "exporters/otlphttp", "exporters/loadbalancing", "exporters/logging"),
        *("connectors/spanmetrics", "processors/batch", "extensions/memory_ballast"),
    }
    for file in (CONFIG, AUTH, RECORD, JAEGER_CONFIG):
        config = loaded(file)
        used = {
            f"{section}/{name.split('/')[0]}"
            for section in ("receivers", "processors", "connectors", "exporters", "extensions")
            for name in config.get(section, {})
        }
        assert not used & deprecated, file.name
        assert "dimensions_cache_size" not in file.read_text(encoding="utf-8")
        assert "address" not in config.get("service", {}).get("telemetry", {}).get("metrics", {})


@pytest.mark.parametrize("file", [CONFIG, JAEGER_CONFIG], ids=lambda f: f.name)
def test_by_default_everything_listens_on_loopback(file: Path) -> None:
    """Nothing is reachable from another machine until somebody says so."""
    for name, default in settings(file).items():
        if name.endswith(("_ENDPOINT", "_HOST")):
            assert default.startswith("127.0.0.1"), (name, default)
    text = file.read_text(encoding="utf-8")
    assert re.findall(r"^ *(?:endpoint|host): +(?!\$\{env:)(.+)", text, re.MULTILINE) == []


def test_the_defaults_of_the_two_do_not_collide() -> None:
    """Collector and Jaeger run on one machine as they are, and the one finds the other."""
    both = {**settings(CONFIG), **settings(JAEGER_CONFIG)}
    ports = {name: value.rsplit(":")[-1] for name, value in both.items() if name[-4:] != "HOST"}
    listening = [
        port
        for name, port in ports.items()
        if name.endswith(("_ENDPOINT", "_PORT")) and name != "JAEGER_OTLP_ENDPOINT"
    ]
    assert len(listening) == len(set(listening)) > 8
    assert both["JAEGER_OTLP_ENDPOINT"] == both["JAEGER_GRPC_ENDPOINT"]


@pytest.mark.parametrize("file", [CONFIG, AUTH, RECORD, JAEGER_CONFIG], ids=lambda f: f.name)
def test_every_variable_is_documented(file: Path) -> None:
    """docs/deployment.md names it, with the default that it has."""
    for name, default in settings(file).items():
        assert f"`{name}`" in DOCUMENT, name
        if f"| `{name}` |" in DOCUMENT:
            shown = f"`{default}`" if default else "none"
            assert f"| `{name}` | {shown} |" in DOCUMENT, (name, default)


def test_every_documented_variable_is_read() -> None:
    """Each variable in a table of docs/deployment.md is one that some file reads."""
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", DOCUMENT, re.MULTILINE))
    read = {name for file in (CONFIG, JAEGER_CONFIG) for name in settings(file)}
    read |= set(re.findall(r"\$\{(\w+):-", COMPOSE.read_text(encoding="utf-8")))
    assert documented == read


def test_metrics_have_no_ids_as_labels() -> None:
    """Every value of a label is a series: ids of users or transactions would be without end."""
    dimensions = {d["name"] for d in loaded(CONFIG)["connectors"]["span_metrics"]["dimensions"]}
    known = {semconv.PIPELINE, semconv.STAGE, semconv.STAGE_OUTCOME, semconv.OUTCOME}
    assert dimensions == known | {semconv.ERROR_TYPE}


# --- Jaeger's page --------------------------------------------------------------------------------


def test_the_links_of_jaegers_page_can_be_made() -> None:
    """Each is found by an attribute of ours, and made of what Jaeger knows there."""
    ui = json.loads((ROOT / "deploy" / "jaeger-ui.json").read_text(encoding="utf-8"))
    assert ui["traceIdDisplayLength"] == 8
    assert ui["monitor"] == {"menuEnabled": True}
    keys = []
    for link in ui["linkPatterns"]:
        parameters = set(re.findall(r"#\{([^{}]*)\}", link["url"] + link["text"]))
        assert link["text"]
        if link["type"] == "traces":
            assert parameters == {"traceID"}
        else:
            assert link["type"] == "tags"
            assert parameters - {"serviceName"} == {link["key"]}
            keys.append(link["key"])
    assert keys == [semconv.TRANSACTION_ID, semconv.CONVERSATION_ID]


# --- compose --------------------------------------------------------------------------------------


def test_the_compose_file_follows_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(COMPOSE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_accepts_the_file() -> None:
    """Docker's own program reads it, and the demo runs only when it is asked for."""
    everyday = set(compose()["services"])
    assert set(services()) - everyday == {"demo"}
    assert {"collector", "jaeger", "prometheus", "dashboard"} <= everyday


def test_no_port_is_open_beyond_this_machine() -> None:
    """Unless OTEL_TRACKER_BIND says so, and then all of them are."""

    def addresses(**env: str) -> list[str]:
        found = services(**env).values()
        return [p.get("host_ip", "") for s in found for p in s.get("ports", [])]

    assert set(addresses()) == {"127.0.0.1"}
    assert addresses(OTEL_TRACKER_BIND="10.0.0.7") == ["10.0.0.7"] * len(addresses())


def test_the_page_is_published_beside_the_api() -> None:
    """The demo starts none of its own: it feeds that service, and ends well when it is stopped."""
    found = services()
    assert [port["published"] for port in found["dashboard"]["ports"]] == ["8500", "8501"]
    assert "--no-page" not in found["dashboard"]["command"][0]
    demo = found["demo"]
    assert demo["environment"]["OTEL_TRACKER_URL"] == "http://dashboard:8500"
    assert demo["command"][0].strip().endswith("exec otel-tracker demo")
    assert demo["stop_grace_period"] == "20s"


def test_every_container_is_confined() -> None:
    """No new privileges, no capabilities, a read-only root, bounds for memory, processes, log."""
    for name, service in services().items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert int(service["mem_limit"]) <= 1 << 30, name
        assert service["pids_limit"] > 0, name
        assert service["logging"]["options"]["max-size"], name
        assert service.get("privileged") is None, name
        # Only what runs once and prepares the volumes is root, without a network.
        if name == "prepare":
            assert service["network_mode"] == "none"
            assert service["cap_add"] == ["CHOWN", "DAC_OVERRIDE", "FOWNER"]
        else:
            assert "cap_add" not in service, name
            assert service.get("user") in {None, "10001:10001"}, name


def test_what_runs_for_long_starts_again_and_tells_its_health() -> None:
    """Each long-running service has a check; the Collector's image has no shell: a neighbour's."""
    checks = {}
    for name, service in services().items():
        if name in {"prepare", "demo"}:
            assert service["restart"] == "no", name
        else:
            assert service["restart"] == "unless-stopped", name
            checks[name] = " ".join(service.get("healthcheck", {}).get("test", []))
    assert checks.pop("collector") == ""
    assert "http://collector:13133/" in checks["collector-health"]
    assert all(checks.values())


def test_images_are_pinned() -> None:
    """Each has a version, and the tests run the Collector of the same."""
    images = {name: service["image"] for name, service in services().items()}
    for image in set(images.values()) - {PROJECT_IMAGE}:
        assert re.fullmatch(r"[a-z-]+/[a-z-]+:v?\d+\.\d+\.\d+", image), image
    manifest = loaded(ROOT / "scripts" / "engines" / "collector.yaml")
    assert images["collector"].endswith(f":{manifest['dist']['version']}")


def test_the_containers_find_each_other() -> None:
    """What one service is told to listen on, the other is told to ask."""
    found = services()
    collector, jaeger = found["collector"]["environment"], found["jaeger"]["environment"]
    assert set(collector) - {"GOMEMLIMIT"} <= set(settings(CONFIG))
    assert set(jaeger) <= set(settings(JAEGER_CONFIG))
    assert collector["JAEGER_OTLP_ENDPOINT"] == "jaeger:4317"
    assert jaeger["JAEGER_GRPC_ENDPOINT"] == "0.0.0.0:4317"
    health = {**settings(JAEGER_CONFIG), **jaeger}["JAEGER_HEALTH_ENDPOINT"]
    assert f"http://{health}/status" in found["jaeger"]["healthcheck"]["test"]

    scraped = [
        target
        for job in loaded(PROMETHEUS)["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    ]
    assert scraped == [
        collector["OTELCOL_SPAN_METRICS_ENDPOINT"].replace("0.0.0.0", "collector"),  # noqa: S104
        f"collector:{settings(CONFIG)['OTELCOL_METRICS_PORT']}",
    ]


def test_files_that_compose_mounts_exist() -> None:
    for name, service in services().items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).is_file(), (name, volume["source"])
                assert volume["read_only"] is True, (name, volume["source"])


def test_the_token_is_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    """The first start makes a token of 256 bits, in a file for one user; later ones keep it."""
    script = services()["prepare"]["command"][0].replace("$$", "$")
    for folder in ("queue", "jaeger", "token"):
        (tmp_path / folder).mkdir()
        script = re.sub(rf"(?<= )/{folder}\b", str(tmp_path / folder), script)
    # Giving files away is for root; everything else runs as it stands.
    shell = ["sh", "-euc", f"chown() {{ echo chown $@; }}\n{script}"]
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    token = tmp_path / "token" / "token"

    def prepare() -> str:
        done = subprocess.run(
            shell, env={"PATH": python}, capture_output=True, text=True, check=True
        )
        assert f"chown 10001:10001 {tmp_path}/queue {tmp_path}/jaeger" in done.stdout
        return token.read_text(encoding="utf-8")

    first = prepare()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", first)
    assert token.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in token.parent.iterdir()] == ["token"]
    assert prepare() == first


# --- Prometheus and the image ---------------------------------------------------------------------


def test_promtool_accepts_the_configuration_of_prometheus() -> None:
    command = [executable("promtool", "prometheus"), "check", "config", str(PROMETHEUS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_image_gets_what_it_needs_and_runs_as_nobody_in_particular() -> None:
    """What the Dockerfile copies is let through, exists, and is not run by root."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    words = [line.split() for line in lines if line.startswith("COPY ") and "--from" not in line]
    sources = {source for _, *given, _ in words for source in given}
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sources == {line[1:] for line in let_through if line.startswith("!")}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert "*" in let_through
    assert "USER 10001:10001" in lines
    assert re.search(r"^ARG PYTHON=3\.\d+-slim-\w+$", "\n".join(lines), re.MULTILINE)


def test_the_image_has_what_the_project_asks_for() -> None:
    """All that the service and the demo depend on is pinned, to what the tests run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    text = (ROOT / "deploy" / "requirements.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9-]+)==[^\n]*\\\n +--hash=sha256:", text, re.MULTILINE))
    wanted = [*project["dependencies"], *extras["dashboard"], *extras["demo"]]
    assert {re.split(r"[^a-z0-9-]", need)[0] for need in wanted} <= pinned

    def versions(file: str) -> dict[str, str]:
        text = (ROOT / file).read_text(encoding="utf-8")
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    tested = versions("requirements/dev.txt")
    for file in ("deploy/requirements.txt", "deploy/requirements-build.txt"):
        for name, version in versions(file).items():
            assert tested.get(name, version) == version, f"{name}: run `make requirements`"
