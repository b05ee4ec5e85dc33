"""The demo: real speech, real recognition, a real lock, a really truncated file."""

from __future__ import annotations

import http.client
import io
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final, cast

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from websockets.sync.client import ClientConnection, connect

from otel_tracker import TransactionStatus, stage, transaction
from otel_tracker.dashboard import queries
from otel_tracker.dashboard.recording import load
from otel_tracker.demo import report
from otel_tracker.demo.audio import AudioError, packets, samples, size_of
from otel_tracker.demo.faults import locked
from otel_tracker.demo.memories import Memory, MemoryStore, extract
from otel_tracker.demo.pipeline import STALL_AFTER_S, VOICE_NOTES, Recorded
from otel_tracker.demo.recognizer import Recognizer
from otel_tracker.demo.run import (
    RECORDINGS,
    Recording,
    Run,
    Stall,
    VoiceNote,
    own,
    shipped,
    word_error_rate,
)
from otel_tracker.demo.traces import Trace
from otel_tracker.demo.watch import Watch
from otel_tracker.demo.web import server
from otel_tracker.testing import Harness, fresh_tracker
from otel_tracker.trace.spans import Span

ROOT = Path(__file__).parent.parent
TRUNCATED = (
    "Failed at transcription_completed: bill.wav is truncated: "
    "its header promises 2.7 s and 1.2 s came"
)


@dataclass(frozen=True)
class Finished:
    """A run of the command, and where it kept its files."""

    status: int
    out: str
    err: str
    directory: Path

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.out)
        return data


def run_demo(directory: Path, *arguments: str, **environment: str) -> Finished:
    """Runs the command in a process of its own, warnings as errors, without the caller's OTEL_*."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "DEBUG_DUMP"))}
    command = [sys.executable, "-W", "error", "-m", "otel_tracker", "demo"]
    done = subprocess.run(
        [*command, "--dir", str(directory), *arguments],
        cwd=ROOT,
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr, directory)


def write_wav(path: Path, *, rate: int = 16_000, channels: int = 1, width: int = 2) -> Path:
    """A tenth of a second of silence in any format."""
    with wave.open(str(path), "wb") as wav:
        wav.setframerate(rate)
        wav.setnchannels(channels)
        wav.setsampwidth(width)
        wav.writeframes(bytes(rate // 10 * channels * width))
    return path


# --- the shipped recordings -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demo as shipped, run once for all tests that look at it."""
    return run_demo(tmp_path_factory.mktemp("demo"), "--json")


def test_json_is_alone_on_stdout(demo: Finished) -> None:
    """The run does what it should, and stdout holds the dashboard's data and nothing else."""
    assert demo.status == 0, demo.err
    documented = {"system_metrics", "recent_transactions", "recent_issues", "active_users"}
    assert documented <= demo.data.keys()


def test_counts(demo: Finished) -> None:
    """Every recording is counted once, by how it ended, and every packet of it."""
    metrics = demo.data["system_metrics"]
    expected = [recording.expect for recording in shipped()]
    assert expected.count("completed") >= 5
    assert metrics["total_transactions"] == len(expected)
    assert metrics["failed_transactions"] == expected.count("failed") == 1
    # A recording without speech is rightly skipped: done, and no transcript.
    done = expected.count("completed") + expected.count("skipped")
    assert metrics["completed_transactions"] == done
    assert metrics["active_transactions"] == metrics["stalled_transactions"] == 0
    assert metrics["total_transcriptions"] == expected.count("completed")
    assert metrics["total_memories"] == expected.count("completed")
    assert metrics["active_websockets"] == 0
    assert demo.data["active_users"] == len(expected)
    sizes = [recording.path.stat().st_size for recording in shipped()]
    assert metrics["total_audio_chunks"] == sum(-(-size // 3200) for size in sizes)


def test_truncated_recording_fails(demo: Finished) -> None:
    """A truncated recording fails its transcription with a sentence that says what is missing."""
    failed = [r for r in demo.data["recent_transactions"] if r["status"] == "failed"]
    assert [(row["user_id"], row["issue"]) for row in failed] == [("heidi", TRUNCATED)]
    assert demo.data["stages"]["transcription"]["failed"] == 1
    issues = [i for i in demo.data["recent_issues"] if i["issue"] == TRUNCATED]
    assert [issue["resolved"] for issue in issues] == [False]


def test_silence_is_skipped(demo: Finished) -> None:
    """A recording without speech is skipped, not failed, and no memory is attempted."""
    ivan = [r for r in demo.data["recent_transactions"] if r["user_id"] == "ivan"]
    assert [(row["status"], row["issue"]) for row in ivan] == [("completed", None)]
    assert demo.data["stages"]["transcription"]["skipped"] == 1
    assert not (demo.directory / "memories" / "ivan.sqlite").exists()


def test_locked_database_stalls_and_recovers(demo: Finished) -> None:
    """The lock of another connection stalls a memory stage; when it goes, the memory is kept."""
    stalls = [i for i in demo.data["recent_issues"] if i["user_id"] == "grace"]
    text = "Transcription completed but memory processing stalled"
    assert [(issue["issue"], issue["resolved"]) for issue in stalls] == [(text, True)]
    assert demo.data["stalled"] == []
    assert demo.data["stages"]["memory"]["p95"] > STALL_AFTER_S
    assert "dinner.wav stalled in memory, its database locked" in demo.err
    assert re.search(r"It recovered \d+\.\d s later", demo.err)
    kept = MemoryStore(demo.directory / "memories").all_of("grace")
    assert kept == [Memory("task", "book a table for two on saturday evening")]


def test_each_transaction_is_one_trace(demo: Finished) -> None:
    """Every transaction is one trace, whole; those that became memories crossed three processes."""
    expected = [recording.expect for recording in shipped()]
    traces = demo.data["traces"]
    assert traces["whole"] == len(expected)
    assert traces["through_three_processes"] == expected.count("completed")
    assert traces["example"]["recording"] == "dinner.wav"


def test_the_trace_shows_which_process_did_what(demo: Finished) -> None:
    """One root, every stage under it, each with the service and the process that did it."""
    rows = demo.data["traces"]["example"]["spans"]
    depths = {row["span"]: row["depth"] for row in rows}
    assert (depths.pop("voice_notes"), set(depths.values())) == (0, {1})
    assert {row["span"]: row["service"].removeprefix("voice-notes-") for row in rows} == {
        "voice_notes": "web",
        "audio": "web",
        "transcription queued": "transcriber",
        "transcription": "transcriber",
        "memory queued": "memory",
        "memory": "memory",
        "memory stalled": "memory",
        "memory recovered": "memory",
        "ended success": "memory",
    }
    ids = {(row["service"], row["process"]) for row in rows}
    assert len(ids) == len({process for _, process in ids}) == 3
    outcomes = {row["span"]: row["outcome"] for row in rows}
    assert outcomes["transcription"] == outcomes["memory"] == "success"
    assert outcomes["memory stalled"] == "error"


def test_the_trace_is_printed(demo: Finished) -> None:
    """The report shows the same trace line by line."""
    printed = demo.err.partition("Trace of dinner.wav\n")[2].partition("\nOne root")[0]
    header, *lines = printed.splitlines()
    assert header.split() == ["span", "service", "process", "at", "s", "for", "s", "outcome"]
    rows = demo.data["traces"]["example"]["spans"]
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(" " * row["depth"] + row["span"] + " ")
        assert f" {row['service']} " in line
        assert f" {row['process']} " in line


def test_word_error_rate(demo: Finished) -> None:
    """The transcripts are right: at most one word in ten is wrong, and stderr says how many."""
    found = re.search(r"Word error rate of all transcripts: ([\d.]+)%", demo.err)
    assert found
    assert float(found[1]) <= 10.0


def test_memories_are_kept(demo: Finished) -> None:
    """Each kind of memory comes out of the speech and is in its user's database."""
    store = MemoryStore(demo.directory / "memories")
    assert store.all_of("anna") == [Memory("task", "buy milk and bread tomorrow morning")]
    assert [memory.kind for memory in store.all_of("dave")] == ["preference", "preference"]
    assert [memory.kind for memory in store.all_of("frank")] == ["fact", "fact"]


def test_dump_has_every_transaction_and_no_text(demo: Finished) -> None:
    """The dump holds the whole run, and what people said stays out of it."""
    (path,) = (demo.directory / "debug_dumps").glob("*.json")
    assert str(path) in demo.err
    text = path.read_text("utf-8")
    assert len(json.loads(text)["transactions"]) == len(shipped())
    assert "peanuts" not in text
    assert "peanuts" not in demo.out


def test_the_journal_of_a_run_is_replayed_to_its_figures(demo: Finished) -> None:
    """Each process fed the dashboard service, which kept what it was told."""
    kept = load([demo.directory / "journal"])
    assert f"otel-tracker replay {demo.directory / 'journal'}" in demo.err
    mine = kept.service.read(queries.dashboard)["system_metrics"]
    its = demo.data["system_metrics"]
    assert [mine[name] for name in TOTALS] == [its[name] for name in TOTALS]


TOTALS: Final = (
    "total_transactions", "completed_transactions", "failed_transactions",
    "stalled_transactions", "total_audio_chunks", "total_transcriptions", "total_memories",
)  # fmt: skip


def test_recordings_are_small_speech() -> None:
    """The shipped recordings are 16 kHz mono 16-bit, and all but the cut one are whole."""
    recordings = shipped()
    assert {r.path for r in recordings} == set(RECORDINGS.glob("*.wav"))
    assert sum(r.path.stat().st_size for r in recordings) < 1_500_000
    for recording in recordings:
        data = recording.path.read_bytes()
        if recording.expect == "failed":
            with pytest.raises(AudioError, match="truncated"):
                samples(data, recording.path.name)
        else:
            assert len(samples(data, recording.path.name)) == len(data) - 44


# --- a user's own recordings ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A good recording, a stereo one, a text and a missing file, in one run, for people."""
    directory = tmp_path_factory.mktemp("own")
    good = directory / "my [bold] note.wav"
    good.write_bytes((RECORDINGS / "car.wav").read_bytes())
    stereo = write_wav(directory / "music.wav", rate=44_100, channels=2)
    text = directory / "not a recording.wav"
    text.write_text("this is a text, and a long one, but no recording of anything at all")
    files = (good, stereo, text, directory / "missing.wav")
    # What a developer's machine may have set: none of it may keep the demo from showing anything.
    environment = {
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "OTEL_SDK_DISABLED": "true",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_TRACKER_DISABLED": "true",
    }
    return run_demo(directory / "kept", "--once", *map(str, files), **environment)


def test_own_recording_is_recognised(own_files: Finished) -> None:
    """A user's own WAV goes the same way; its name is printed as it is."""
    assert own_files.status == 0, own_files.err
    assert "my [bold] note.wav" in own_files.err
    kept = MemoryStore(own_files.directory / "memories").all_of("you")
    assert [memory.text for memory in kept] == [
        "the car is parked on the third floor",
        "the key is in the kitchen",
    ]


def test_unusable_files_fail_alone(own_files: Finished) -> None:
    """A file that cannot be used fails its own transaction, with what to do about it."""
    assert (
        "music.wav is 44100 Hz, 2 channels, 16-bit, not 16000 Hz, mono, 16-bit; "
        "convert it: sox music.wav -r 16000 -c 1 -b 16 music-16k.wav"
    ) in own_files.out
    assert (
        "not a recording.wav is no WAV of 16-bit samples (file does not start with RIFF id); "
        "convert it: sox 'not a recording.wav' -r 16000 -c 1 -b 16 'not a recording-16k.wav'"
    ) in own_files.out
    assert (
        "Failed at audio_received: missing.wav cannot be read: No such file or directory"
    ) in own_files.out


def test_report_for_people(own_files: Finished) -> None:
    """Without --json, stdout is a report: totals, where the files are, how to get to Jaeger."""
    total, *rest = re.search(r"memories\s+─+\s+([\d ]+)", own_files.out)[1].split()  # type: ignore[index]
    assert (total, rest[:4]) == ("4", ["0", "1", "3", "0"])
    dump = re.search(r"^Debug dump: (.+)$", own_files.out, re.MULTILINE)
    assert dump
    assert Path(dump[1]).is_file()
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in own_files.out


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP/HTTP endpoint: its address, and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Inlet(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Inlet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


def test_export_and_links(collector: tuple[str, list[bytes]], tmp_path: Path) -> None:
    """With an endpoint the spans are exported, and the report links to the same trace in Jaeger."""
    address, bodies = collector
    file = write_wav(tmp_path / "quiet.wav")
    done = run_demo(tmp_path / "kept", "--once", str(file), OTEL_EXPORTER_OTLP_ENDPOINT=address)
    link = re.search(r"quiet\.wav: http://localhost:16686/trace/([0-9a-f]{32})", done.out)
    assert link, done.out
    sent = b"".join(bodies)
    assert bytes.fromhex(link[1]) in sent
    assert {b"voice-notes-web", b"voice-notes-transcriber"} <= set(
        re.findall(rb"voice-[a-z-]+", sent)
    )


# --- a run that is ended early --------------------------------------------------------------------

DIES: Final = """
import multiprocessing, os, sys
from pathlib import Path
from otel_tracker.demo import processes, run

def on_progress(recording, stage, share):
    if stage == "transcription" and not hit:
        run._SILENT_AT_MOST_S, processes._END_WITHIN_S = 1.0, 1.0
        hit.extend(p for p in multiprocessing.active_children() if p.name == name)
        for process in hit:
            os.kill(process.pid, int(number))

directory, name, number = sys.argv[1:]
hit = []
result = run.run(run.own([run.RECORDINGS / "car.wav"]), Path(directory), on_progress)
print(*result.complaints(), [n.error for n in result.notes], sep="\\n")
print(multiprocessing.active_children())
"""


@pytest.mark.parametrize(
    ("name", "signal_", "complaint"),
    [
        (
            "voice-notes-transcriber",
            signal.SIGKILL,
            "the process voice-notes-transcriber ended before its work was done (exit code -9)",
        ),
        ("voice-notes-memory", signal.SIGSTOP, "nothing was heard for 1 s"),
    ],
)
def test_a_process_that_dies_or_hangs(
    tmp_path: Path, name: str, signal_: signal.Signals, complaint: str
) -> None:
    """The run ends soon, with one complaint that says why, and leaves no process behind."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DIES, str(tmp_path), name, str(int(signal_))],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [complaint, "['nobody finished it']", "[]"], done.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into Linux's /proc")
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(tmp_path: Path, signal_: signal.Signals) -> None:
    """After Ctrl-C, or when it is killed, every process of the demo ends; Ctrl-C is no crash."""
    command = [sys.executable, "-W", "error", "-m", "otel_tracker", "demo", "--dir", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        # When the first memory is kept, all of its processes have been at work.
        until((tmp_path / "memories" / "anna.sqlite").exists)
        # A terminal sends Ctrl-C to all of them.
        (os.killpg if signal_ == signal.SIGINT else os.kill)(process.pid, signal_)
        try:
            until(lambda: not group_exists(process.pid))
        finally:
            if group_exists(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stderr is not None
        err = process.stderr.read()
    if signal_ == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err


def until(condition: Callable[[], bool], timeout_s: float = 40) -> None:
    """Waits for it."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group_exists(group: int) -> bool:
    """Whether a process of this group is left; one that nobody has waited for yet counts not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


# --- the parts ------------------------------------------------------------------------------------


def test_packets_carry_the_whole_file() -> None:
    """A recording arrives in packets of 100 ms and is complete."""
    path = RECORDINGS / "bill.wav"
    received = list(packets(path))
    assert b"".join(received) == path.read_bytes()
    assert {len(packet) for packet in received[:-1]} == {3200}
    assert size_of(path) == sum(map(len, received))


@pytest.mark.parametrize(
    ("rate", "channels", "width"), [(8_000, 1, 2), (16_000, 2, 2), (16_000, 1, 1), (16_000, 1, 3)]
)
def test_other_formats_are_refused(tmp_path: Path, rate: int, channels: int, width: int) -> None:
    """Every format that the recogniser would misread is refused, with the command that helps."""
    data = write_wav(tmp_path / "a.wav", rate=rate, channels=channels, width=width).read_bytes()
    with pytest.raises(AudioError, match=r"sox a\.wav -r 16000 -c 1 -b 16 a-16k\.wav"):
        samples(data, "a.wav")


def test_empty_and_broken_headers_are_refused() -> None:
    """No bytes at all, or half a header, are told apart from speech."""
    with pytest.raises(AudioError, match=r"a\.wav is empty"):
        samples(b"", "a.wav")
    with pytest.raises(AudioError, match="no WAV"):
        samples((RECORDINGS / "car.wav").read_bytes()[:30], "a.wav")


def test_length_unknown_to_a_pipe_is_no_truncation() -> None:
    """A WAV written into a pipe claims 2 or 4 GB; what it holds is taken."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as wav:
            wav.setframerate(16_000)
            wav.setnchannels(1)
            wav.setsampwidth(2)
            wav.writeframes(bytes(3200))
        data = file.getvalue()
    assert len(samples(data[:40] + b"\xff\xff\xff\xff" + data[44:], "piped.wav")) == 3200


def test_too_long_or_no_file_is_refused(tmp_path: Path) -> None:
    """Directories and files beyond ten minutes are refused before anything is read."""
    with pytest.raises(AudioError, match="is no file"):
        size_of(tmp_path)
    long = tmp_path / "long.wav"
    with long.open("wb") as file:
        file.truncate(20_000_000)  # sparse
    with pytest.raises(AudioError, match="longer than 10 minutes"):
        size_of(long)


def test_transcript_does_not_depend_on_what_was_heard_before() -> None:
    """A recogniser that has heard other voices gives the same text, on any thread."""
    recognizer = Recognizer()
    pcm = {n: samples((RECORDINGS / n).read_bytes(), n) for n in ("sister.wav", "green.wav")}
    shares: list[float] = []
    first = recognizer.transcribe(pcm["sister.wav"], shares.append)
    recognizer.transcribe(pcm["green.wav"], lambda _share: None)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(recognizer.transcribe, pcm["sister.wav"], lambda _share: None)
        assert elsewhere.result() == first
    assert recognizer.transcribe(pcm["sister.wav"], lambda _share: None) == first
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("transcript", "memories"),
    [
        ("don't forget to feed the cat", ["task: feed the cat"]),
        ("we should sleep and i love cheese", ["task: sleep", "preference: i love cheese"]),
        ("buy milk and bread", ["note: buy milk and bread"]),
        ("my aunt lives and works here", ["fact: my aunt lives and works here"]),
        ("i like tea and the key is here", ["preference: i like tea", "fact: the key is here"]),
        ("", []),
    ],
)
def test_extraction(transcript: str, memories: list[str]) -> None:
    """Sentences become memories of their kind, and nothing that was said is lost."""
    assert [f"{memory.kind}: {memory.text}" for memory in extract(transcript)] == memories


def test_write_waits_for_the_lock(tmp_path: Path) -> None:
    """While another connection holds the lock a write waits, and then it is done."""
    store = MemoryStore(tmp_path)
    note = [Memory("note", "hello")]
    with ThreadPoolExecutor(1) as pool:
        with locked(store.path_of("../a b")):
            writing = pool.submit(store.add, "../a b", note)
            time.sleep(0.2)
            assert not writing.done()
        writing.result(timeout=10)
    assert store.all_of("../a b") == note
    assert list(tmp_path.iterdir()) == [store.path_of("../a b")]  # never outside the directory


@dataclass(frozen=True)
class Web:
    """The web application on a server of the test's own, and the queue that it fills."""

    t: Harness
    jobs: queue.Queue[Recorded]
    address: str

    def call(self) -> ClientConnection:
        """A phone that begins a recording."""
        who = "user_id=u&client_id=c&file_name=note.wav"
        return connect(f"ws://{self.address}/recordings?{who}", open_timeout=10, close_timeout=10)


@pytest.fixture
def web() -> Iterator[Web]:
    jobs: queue.Queue[Recorded] = queue.Queue()
    with fresh_tracker(use_as_shared=True) as t, socket.create_server(("127.0.0.1", 0)) as listener:
        serving = server(cast("Any", jobs))
        thread = threading.Thread(target=serving.run, args=([listener],))
        thread.start()
        try:
            yield Web(t, jobs, f"127.0.0.1:{listener.getsockname()[1]}")
        finally:
            serving.should_exit = True
            thread.join()


def test_web_queues_a_recording(web: Web) -> None:
    """Packets in, one job out: it carries the transaction, whose root ends with the hand-over."""
    with web.call() as phone:
        transaction_id = str(phone.recv(timeout=10))
        assert web.t.tracker.metrics.active_websockets == 1
        phone.send(b"ab")
        phone.send(b"c")
        phone.send('{"error": null}')
        assert list(phone) == []  # closed, and well
    job = web.jobs.get(timeout=10)
    assert (job.user_id, job.file_name, job.recording) == ("u", "note.wav", b"abc")
    assert transaction_id.replace("-", "") in job.carrier["traceparent"]
    audio, root = sorted(web.t.spans(), key=lambda s: s["name"])
    assert (audio["name"], root["name"]) == ("audio", "voice_notes")
    assert audio["attributes"]["otel_tracker.audio.chunks"] == 2
    assert root["attributes"]["user.id"] == "u"
    until(lambda: web.t.tracker.metrics.active_websockets == 0)


@pytest.mark.parametrize(
    ("last", "issue"),
    [
        ('{"error": "the battery is empty"}', "the battery is empty"),
        (None, "the connection was lost"),
        (b"x" * 50_000, "the recording is too long"),
    ],
)
def test_web_fails_what_does_not_arrive(
    web: Web, monkeypatch: pytest.MonkeyPatch, last: str | bytes | None, issue: str
) -> None:
    """A phone that gives up, goes away or sends without end fails its transaction; no job."""
    monkeypatch.setattr("otel_tracker.demo.web.LONGEST_BYTES", 40_000)
    with web.call() as phone:
        transaction_id = str(phone.recv(timeout=10))
        phone.send(b"ab")
        if last is not None:
            phone.send(last)
            assert list(phone) == []
    until(lambda: web.t.status(transaction_id) is TransactionStatus.FAILED)
    assert web.t.issue(transaction_id) == f"Failed at audio_received: {issue}"
    assert web.jobs.empty()


def post(endpoint: str, body: bytes, length: int | str | None = None) -> int:
    """The status of a request with this body and, where given, a length that it claims."""
    host = endpoint.split("/")[2]
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.putrequest("POST", "/v1/traces")
        if length != "":
            connection.putheader("Content-Length", str(len(body) if length is None else length))
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_watch_takes_spans_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request's spans are folded and kept; garbage, no length and too much are refused."""
    with fresh_tracker() as sender:
        tracker = sender.tracker
        with transaction("voice", tracker=tracker) as tx, stage("memory", tracker=tracker):
            pass
        body = encode_spans(sender.finished_spans()).SerializeToString()
    with fresh_tracker() as t, Watch(t.tracker.receiver.take) as watch:
        assert post(watch.endpoint, body) == 200
        assert t.status(tx.id) is TransactionStatus.COMPLETED
        assert sorted(span.name for span in watch.spans) == ["memory", "voice"]
        assert {(s.service, s.process) for s in watch.spans} == {("test", str(os.getpid()))}
        assert post(watch.endpoint, b"garbage") == 400
        assert post(watch.endpoint, b"", "") == 411
        assert post(watch.endpoint, b"", "many") == 411
        assert post(watch.endpoint, b"", 5_000_000) == 413
        monkeypatch.setattr("otel_tracker.demo.watch._SPANS_AT_MOST", 3)
        assert post(watch.endpoint, body) == 200
        assert len(watch.spans) == 3
    with pytest.raises(OSError, match="refused"):
        post(watch.endpoint, body)


def test_stall_that_a_worker_told_has_the_documented_sentence() -> None:
    """The worker does not know that transcription was done; who sees all spans says it."""
    with fresh_tracker() as web:
        with transaction(VOICE_NOTES, tracker=web.tracker) as tx:
            with stage("transcription", tracker=web.tracker):
                pass
            tx.queued("memory")
            carrier = tx.carrier()
            tx.hand_over()
        spans = web.finished_spans()
    with fresh_tracker() as worker:
        worker.tracker.declare(VOICE_NOTES)
        worker.clock.advance(1)
        with stage("memory", carrier=carrier, tracker=worker.tracker):
            worker.advance(STALL_AFTER_S + 1)
            worker.advance(1)
        spans += worker.finished_spans()
    assert "memory stalled" in {span.name for span in spans}
    with fresh_tracker() as t:
        t.tracker.declare(VOICE_NOTES)
        t.clock.advance(10)
        t.tracker.receiver.take(encode_spans(spans).SerializeToString())
        issues = t.tracker.get_dashboard_data()["recent_issues"]
    text = "Transcription completed but memory processing stalled"
    assert [(issue["issue"], issue["resolved"]) for issue in issues] == [(text, True)]


# --- what is said of a run ------------------------------------------------------------------------


def a_run(recording: Recording, note: VoiceNote, *stalls: Stall) -> Run:
    metrics = {"active_transactions": 0, "stalled_transactions": 0}
    traces = {note.transaction_id: Trace([span(1), span(2, 1, "2"), span(3, 1, "3")])}
    data = {"system_metrics": metrics}
    return Run([recording], Path("/kept"), [note], list(stalls), data, traces=traces)


def span(number: int, parent: int | None = None, process: str = "1") -> Span:
    """A span that did work in a process."""
    parent_id = "" if parent is None else str(parent)
    return Span("t", str(number), parent_id, "work", "web", process, number, number + 1, "success")


def test_complaints() -> None:
    """A run that did not do what the manifest says has a complaint about each thing."""
    path = Path("a.wav")
    good = a_run(Recording(path, "u", "hello", "completed"), VoiceNote("t", "u", path, "hello"))
    assert good.complaints() == []
    failed = VoiceNote("t", "u", path, error="no luck")
    assert a_run(Recording(path, "u", None, "completed"), failed).complaints() == [
        "a.wav was to be completed: no luck"
    ]
    misheard = a_run(Recording(path, "u", "hello"), VoiceNote("t", "u", path, "yellow"))
    assert misheard.complaints() == ["the word error rate is 100.0%"]
    lock = Recording(path, "u", None, None, database_locked=True)
    assert a_run(lock, VoiceNote("t", "u", path, "hello")).complaints() == [
        "a.wav found its database locked and did not stall"
    ]
    good.data["system_metrics"]["stalled_transactions"] = 1
    assert good.complaints() == ["transactions that are still stalled: 1"]
    good.trouble = "the process ended"
    assert good.complaints() == ["the process ended"]  # the rest follows from it


@pytest.mark.parametrize(
    ("spans", "flaw"),
    [
        ([], "no span of it came"),
        ([span(1), span(2)], "it has 2 roots"),
        ([span(2, 1), span(3, 2)], "it has 0 roots"),
        ([span(1), span(2, 1), span(3, 9)], "1 of its spans are not under its root"),
        ([span(1), span(2, 3), span(3, 2)], "2 of its spans are not under its root"),
        ([span(1), span(1), span(2, 1), span(3, 2)], "it shows 1 of 3 processes"),
        ([span(1), span(2, 1, "2"), span(3, 2, "3"), span(3, 2, "3")], ""),
    ],
)
def test_a_trace_that_proves_nothing_is_a_complaint(spans: list[Span], flaw: str) -> None:
    """No span, several roots, spans beside the root or in a circle, or too few processes."""
    path = Path("a.wav")
    result = a_run(Recording(path, "u", "hello", "completed"), VoiceNote("t", "u", path, "hello"))
    result.traces = {"t": Trace(spans)}
    assert result.complaints() == ([f"the trace of a.wav is not whole: {flaw}"] if flaw else [])


def test_word_error_rate_counts_what_is_known() -> None:
    """The rate is over all known words; own and failed recordings do not count."""
    path = Path("a.wav")
    recordings = [Recording(path, "u", "one two three"), Recording(path, "u", "four"), *own([path])]
    notes = [VoiceNote("t", "u", path, text) for text in ("one too three", "four", "whatever")]
    assert word_error_rate(recordings, notes) == pytest.approx(1 / 4)
    assert word_error_rate(recordings[:1], [VoiceNote("t", "u", path, error="broken")]) is None


def test_progress_bars_take_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """Bars take any stage from any thread, go to stderr, and print names as they are."""
    recording = Recording(Path("a [red] note.wav"), "u")
    with report.progress_bars([recording]) as show:
        for stage in ("audio", "queued", "transcription", "memory", "stalled", "completed"):
            show(recording, stage, 0.5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a [red] note.wav" in captured.err
    assert "completed" in captured.err
