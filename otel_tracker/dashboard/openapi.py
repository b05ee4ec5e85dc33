"""The OpenAPI 3.1 document of the API: every path, parameter and key, with meaning and unit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from ..model import Outcome, TransactionStatus
from . import beats, pulse, queries, trends

Schema = dict[str, Any]

ALIVE: Final = {"status": "ok"}
"""What ``GET /healthz`` answers."""

_JSON: Final = "application/json"
_PROTOBUF: Final = "application/x-protobuf"
_STATUSES: Final = [status.value for status in TransactionStatus]


# --- kinds of values ------------------------------------------------------------------------------


def _value(kind: str, means: str, *, null: bool = False, **more: Any) -> Schema:
    return {"type": [kind, "null"] if null else kind, "description": means, **more}


def _text(means: str, *, null: bool = False, **more: Any) -> Schema:
    return _value("string", means, null=null, **more)


def _time(means: str, *, null: bool = False) -> Schema:
    return _value("string", means, null=null, format="date-time")


def _count(means: str, *, null: bool = False) -> Schema:
    return _value("integer", means, null=null, minimum=0)


def _seconds(means: str, *, null: bool = False) -> Schema:
    return _value("number", f"{means}, in seconds", null=null)


def _flag(means: str) -> Schema:
    return _value("boolean", means)


def _object(means: str, **properties: Schema) -> Schema:
    return _value(
        "object", means, properties=properties,
        required=list(properties), additionalProperties=False,
    )  # fmt: skip


def _map(means: str, values: Schema) -> Schema:
    return _value("object", means, additionalProperties=values)


def _list(means: str, items: Schema) -> Schema:
    return _value("array", means, items=items)


def _free(means: str, *, null: bool = False) -> Schema:
    """Plain data whose keys are the sender's."""
    return _value("object", means, null=null, additionalProperties=True)


_AS_OF: Final = _time("when this was so")
_ID: Final = _text("transaction id: the trace id written as a UUID", format="uuid")
_STATUS: Final = _text("where it stands", enum=_STATUSES)


# --- rows -----------------------------------------------------------------------------------------


def _row_keys() -> dict[str, Schema]:
    return {
        "id": _ID,
        "user_id": _text("whose it is, or the hash that stands for an e-mail address"),
        "client_id": _text("the client that it came from", null=True),
        "conversation_id": _text("the conversation that it belongs to", null=True),
        "audio_uuid": _text("the audio that it belongs to", null=True),
        "pipeline": _text("the pipeline that it runs", null=True),
        "status": _STATUS,
        "current_stage": _text("the newest reported event; `none` before the first"),
        "created_at": _time("when it began"),
        "updated_at": _time("the newest that was heard of it"),
        "duration_seconds": _seconds("from `created_at` to `updated_at`"),
        "silent_seconds": _seconds("since the last news of it"),
        "issue": _text("what is wrong, in a sentence", null=True),
        "error": _text("the message behind a sentence that does not show it", null=True),
        "lost": _flag("its work is open in a process that fell silent"),
    }


def _short_row() -> Schema:
    return _object(
        "a transaction",
        id=_text("the first 8 characters of its id"),
        user_id=_text("the last 6 characters"),
        status=_STATUS,
        current_stage=_text("the newest reported event; `none` before the first"),
        created_at=_time("when it began"),
        issue=_text("what is wrong, in a sentence", null=True),
    )


def _transaction() -> Schema:
    return _object(
        "one transaction with all that is known of it",
        as_of=_AS_OF,
        **_row_keys(),
        trace_id=_text("32 hex digits, as Jaeger has it"),
        stages=_list("the stages that its pipeline declares, in order", _text("a stage")),
        waiting=_list("stages for which it waits in a queue", _text("a stage")),
        elsewhere=_flag("it was handed over to others, and nothing was heard since"),
        metadata=_free("attributes of its root, as far as they came"),
        service=_text("the service that created it", null=True),
        attempts=_list("each time a stage ran, by start", _attempt()),
        waits=_list("each time it waited in a queue, by start", _wait()),
        stalls=_list("stalls that were told, by start", _stall()),
        events=_list("what was reported, by time", _event()),
        issues=_list("all its issues, by time", _issue_of_one()),
        recording=_list("the newest 50 others of its recording, newest first", _ID),
        dropped_spans=_count("spans of it that were let go: it has too many"),
        jaeger=_object(
            "its trace in Jaeger",
            url=_text("the link", null=True),
            reason=_text("why there is none", null=True),
        ),
    )


def _attempt() -> Schema:
    return _object(
        "one attempt at a stage",
        span_id=_text("16 hex digits"),
        stage=_text("the stage"),
        key=_text("the branch of a fan-out", null=True),
        attempt=_count("its number among those of its stage and key, from 1"),
        state=_text("how it is now", enum=["running", "stalled", "lost", "ended"]),
        outcome=_text(
            f"how it ended: {', '.join(sorted(Outcome.ALL))}; null while it is open", null=True
        ),
        inferred=_flag("nobody reported its success: a later stage had begun"),
        started_at=_time("its start"),
        ended_at=_time("its end", null=True),
        duration_seconds=_seconds("from its start to its end, or until now"),
        silent_seconds=_seconds("since its last sign of life; null once it has ended", null=True),
        limit_seconds=_seconds("silence that is normal in this stage"),
        error=_text("its error message", null=True),
        error_type=_text("the class of the error", null=True),
        stack=_text("where it hung or failed, where a span brought that", null=True),
        within=_text("span id of the attempt around it", null=True),
        where=_text("host/process/thread that did the work", null=True),
        service=_text("`service.name` of that process", null=True),
        version=_text("`service.version` of that process", null=True),
        audio_chunks=_count("packets of audio; null in other stages", null=True),
        audio_bytes=_count("bytes of audio; null in other stages", null=True),
        metadata=_free("its other attributes, as far as they came"),
    )


def _wait() -> Schema:
    return _object(
        "one wait in a queue",
        span_id=_text("16 hex digits"),
        stage=_text("the stage that it waits for"),
        since=_time("when it was queued"),
        until=_time("when a worker took it", null=True),
        seconds=_seconds("how long it waited, or has waited until now"),
        waiting=_flag("it still does"),
    )


def _stall() -> Schema:
    return _object(
        "one stall that was told",
        span_id=_text("16 hex digits"),
        stage=_text("the stage that was silent"),
        key=_text("the branch of a fan-out", null=True),
        since=_time("the last progress before it"),
        told_at=_time("when it was noticed"),
        reason=_text("what was said", null=True),
        where=_text("host/process/thread that did the work", null=True),
        stack=_text("where that thread or task hung, where a span brought it", null=True),
    )


def _event() -> Schema:
    return _object(
        "one reported event",
        timestamp=_time("when"),
        stage=_text("the event"),
        success=_flag("what was reported with it"),
        error_message=_text("likewise", null=True),
        metadata=_free("counts of audio; other metadata is with the attempts"),
    )


def _issue_of_one() -> Schema:
    return _object(
        "one issue",
        at=_time("when it was noticed"),
        issue=_text("the sentence"),
        error=_text("the message behind it", null=True),
        resolved=_flag("its cause is gone"),
    )


def _recent_issue(**more: Schema) -> Schema:
    return _object(
        "an issue of a transaction",
        timestamp=_time("when it was noticed"),
        transaction_id=_ID,
        user_id=_text("whose transaction"),
        issue=_text("the sentence"),
        resolved=_flag("its cause is gone"),
        error=_text("the message behind it", null=True),
        **more,
    )


def _pattern(**more: Schema) -> Schema:
    return _object(
        "the same issue over many transactions",
        pattern=_text("the sentence with its numbers and ids taken out"),
        **more,
        count=_count("transactions that had it"),
        unresolved=_count("those that still have it"),
        first=_time("first seen"),
        last=_time("last seen"),
        examples=_list("the newest few, newest first", _ID),
    )


def _recording() -> Schema:
    return _object(
        "transactions that share a conversation or an audio, also by way of a third",
        conversation_ids=_list("the newest first, at most 50", _text("an id")),
        audio_uuids=_list("likewise", _text("an id")),
        user_ids=_list("likewise", _text("an id")),
        first=_time("when its first transaction began"),
        last=_time("the newest that was heard of it"),
        status=_text("status of its newest transaction", enum=_STATUSES),
        counts=_object(
            "its kept transactions by status",
            **{status: _count("transactions") for status in _STATUSES},
        ),
        transactions=_list(
            "its newest 50 transactions, newest first",
            _object("a transaction, as in `GET /api/transactions`", **_row_keys()),
        ),
        issues=_list("what is wrong with them", _text("a sentence")),
    )


def _tallies() -> dict[str, Schema]:
    return {
        "running": _count("attempts that are open"),
        "done": _count("reported successes"),
        "inferred": _count("successes that nobody reported"),
        "failed": _count("attempts that failed, were cancelled, abandoned or interrupted"),
        "skipped": _count("attempts that rightly had nothing to do"),
        "p50": _seconds("median of the last 500 successes", null=True),
        "p95": _seconds("95th percentile of the last 500 successes", null=True),
        "last_success": _time("the newest success", null=True),
    }


def _flow() -> dict[str, Schema]:
    return {
        "last_success": _time("the newest success", null=True),
        "seconds_since_success": _seconds("since then", null=True),
        "usual_interval_seconds": _seconds("median time between the last 50 successes", null=True),
        "oldest_running_seconds": _seconds("age of the oldest open attempt", null=True),
        "usual_running_p50": _seconds("median length of the last 500 successes", null=True),
        "usual_running_p95": _seconds("95th percentile of those", null=True),
        "waiting": _count("transactions in its queue"),
        "oldest_waiting_seconds": _seconds("how long the first of them has waited", null=True),
        "usual_waiting_p50": _seconds("median of the last 200 waits", null=True),
        "usual_waiting_p95": _seconds("95th percentile of those", null=True),
        "failed": _count("attempts that failed, were cancelled, abandoned or interrupted"),
        "skipped": _count("attempts that rightly had nothing to do"),
        "empty": _count(
            f"successes without a result: {', '.join(f'`{name}`' for name in trends.COUNTS)} is 0"
        ),
        "last_hour": _object(
            "attempts that ended in the last hour, of transactions that are not open any more",
            done=_count("successes, reported or not"),
            failed=_count("failed, were abandoned or interrupted"),
            skipped=_count("rightly had nothing to do"),
            cancelled=_count("were cancelled"),
            empty=_count("those of `done` without a result"),
        ),
    }


def _pulse() -> Schema:
    return _object(
        "is a pipeline broken, since when, for whom",
        pipeline=_text("its name; empty for transactions without one"),
        stages=_list("its declared stages, in order", _text("a stage")),
        goal=_text("the last of them: its success is what counts", null=True),
        state=_text("the worst that is true of it", enum=list(pulse.STATES)),
        last_success=_time("the newest success of the goal", null=True),
        seconds_since_success=_seconds("since then", null=True),
        usual_interval_seconds=_seconds("median time between the last 50 successes", null=True),
        overdue=_flag("that is long over, and there is work"),
        since=_object(
            "what began since the last success, or ever",
            recordings=_count("recordings: transactions of one conversation or audio count once"),
            users=_count("whose"),
            in_progress=_count("transactions in progress"),
            completed=_count("transactions that are done: without the goal, since it was skipped"),
            failed=_count("transactions that failed"),
            stalled=_count("transactions that stalled"),
        ),
        wrong=_object(
            "what stands unresolved, in all",
            recordings=_count("recordings"),
            users=_count("whose"),
        ),
        last_hour=_object(
            "successes of the goal in the last hour",
            done=_count("all of them"),
            empty=_count("those without a result"),
        ),
        troubles=_list(
            "what stands unresolved, of the last hour and since the last success; causes first",
            _object(
                "an issue pattern",
                pattern=_text("the sentence with its numbers and ids taken out"),
                issue=_text("the sentence of the newest"),
                stage=_text("where", null=True),
                state=_text("how", enum=list(pulse.TROUBLES)),
                transactions=_count("that have it"),
                recordings=_count("theirs"),
                users=_count("whose"),
                user_ids=_list("some of them", _text("a user")),
                other_users=_count("users who had success since it began"),
                first=_time("the first of them"),
                last=_time("the newest"),
                example=_ID,
                error=_text(
                    "the message of the newest, where the pattern does not show it", null=True
                ),
            ),
        ),
    )


def _open() -> Schema:
    return _object(
        "what is open",
        total=_count("rows there would be"),
        rows=_list(
            "oldest first, at most 50, of which half are kept for what is stuck",
            _object(
                "an open attempt, a wait in a queue, or a transaction between stages",
                transaction_id=_ID,
                user_id=_text("whose it is"),
                conversation_id=_text("the conversation", null=True),
                audio_uuid=_text("the audio", null=True),
                client_id=_text("the client", null=True),
                pipeline=_text("the pipeline", null=True),
                stage=_text("the stage; null between stages", null=True),
                key=_text("the branch of a fan-out", null=True),
                span_id=_text("16 hex digits; null between stages", null=True),
                attempt=_count("its number among those of its stage and key", null=True),
                state=_text("how it is", enum=list(pulse.OPEN_STATES)),
                since=_time("its start, or when it was queued"),
                age_seconds=_seconds("since then"),
                usual_p50=_seconds("median of what that usually takes", null=True),
                usual_p95=_seconds("95th percentile of it", null=True),
                last_progress=_time("its last sign of life"),
                silent_seconds=_seconds("since then"),
                limit_seconds=_seconds("silence that is normal here", null=True),
                where=_text("host/process/thread that does it", null=True),
                service=_text("`service.name` of that process", null=True),
                issue=_text("what is wrong, in a sentence", null=True),
            ),
        ),
    )


def _trends() -> Schema:
    at = _time("when the bar begins")
    return _object(
        "the last six hours; a transaction stands in the bar of its newest outcome",
        bucket_seconds=_seconds("length of a bar"),
        outcomes=_list(
            "every bar, oldest first",
            _object(
                "transactions by outcome",
                at=at,
                completed=_count("done"),
                failed=_count("failed"),
                stalled=_count("stalled, and not heard of since"),
            ),
        ),
        durations=_map(
            "by stage: bars with successes of transactions that came to an outcome",
            _list(
                "oldest first",
                _object(
                    "how long a success took",
                    at=at,
                    count=_count("successes"),
                    p50=_seconds("median of the newest 100"),
                    p95=_seconds("95th percentile of those"),
                ),
            ),
        ),
        versions=_list(
            "versions of services, newest first",
            _object(
                "a version",
                service=_text("`service.name`"),
                version=_text("`service.version`"),
                first_seen=_time("when it was first heard of"),
            ),
        ),
    )


def _worker() -> Schema:
    return _object(
        "a process that beats",
        worker=_text("host/process"),
        host=_text("its host"),
        process=_text("its process id"),
        service=_text("`service.name`", null=True),
        version=_text("`service.version`", null=True),
        state=_text("`lost`: it missed three beats", enum=["alive", "lost"]),
        last_beat=_time("when the newest beat came"),
        silent_seconds=_seconds("since then"),
        interval_seconds=_seconds("between its beats"),
        started_at=_time("when the process began, by its clock", null=True),
        clock_ahead_seconds=_seconds("its clock against this one's, travel time included"),
        open=_count("spans that are open in it"),
        websockets=_count("websockets that are open in it"),
        lost_work=_list(
            "what it left open, at most 50",
            _object(
                "an open attempt, or a root",
                transaction_id=_ID,
                stage=_text("the stage; null for a root", null=True),
                since=_time("its start"),
            ),
        ),
        health=_free("what the process says of its own troubles"),
    )


def _intake() -> Schema:
    return _object(
        "what came and what was refused, since the service began",
        requests=_count("requests with spans"),
        spans=_count("spans with our attributes; one that is sent twice counts twice"),
        beats=_count("beats"),
        refused=_map("requests that got an error, by HTTP status", _count("requests")),
        refused_new_transactions=_count("transactions over the limit of a minute (503)"),
        new_transactions_per_minute=_count("that limit"),
        new_transactions_this_minute=_count("transactions that began in it"),
        details_dropped=_count("spans whose metadata and stacks were let go"),
        journal=_free("what is kept on disk; null without a journal", null=True),
    )


def _health_keys() -> dict[str, Schema]:
    return {
        "last_success": _time("the newest transaction that went well", null=True),
        "dropped": _map("what was let go or refused, by reason", _count("how many")),
        "disabled": _flag("always false: that is a tracker's"),
        "export": _object(
            "what a tracker exports: nothing here",
            provider={"type": "null", "description": "none"},
            exporters=_map("none", _free("an exporter")),
        ),
        "publisher": {"type": "null", "description": "what a tracker publishes: nothing here"},
        "problems": _map(
            "the service's own problems by kind; each was logged once", _count("how often")
        ),
        "intake": _intake(),
    }


def _silent_keys() -> dict[str, Schema]:
    return {
        "transaction_id": _ID,
        "user_id": _text("whose it is"),
        "conversation_id": _text("the conversation", null=True),
        "current_stage": _text("the newest reported event; `none` before the first"),
        "since": _time("since when it is so"),
        "silent_seconds": _seconds("since then"),
    }


def _dashboard() -> Schema:
    metrics = {
        f"{name}_transactions": _count(f"transactions {means}")
        for name, means in (
            ("total", "in all"), ("active", "in progress"), ("completed", "that are done"),
            ("failed", "that failed"), ("stalled", "that stalled"),
        )
    }  # fmt: skip
    return _object(
        "`get_dashboard_data()`, and what many processes and the night ask for beside it",
        as_of=_AS_OF,
        system_metrics=_object(
            "the totals",
            uptime_hours=_value("number", "hours since the service began"),
            **metrics,
            active_websockets=_count("open websockets"),
            total_audio_chunks=_count("packets of audio"),
            total_transcriptions=_count("reported successes of transcription"),
            total_memories=_count("reported successes of memory"),
            last_activity=_time("the newest that was heard", null=True),
        ),
        recent_transactions=_list("the last 10, oldest first", _short_row()),
        recent_issues=_list("the last 10, newest last", _recent_issue()),
        active_users=_count("users with activity in the last 5 minutes"),
        issue_patterns=_list("seen last first, at most 50", _pattern()),
        stalled=_list(
            "what is stuck, longest first, at most 50",
            _object(
                "an attempt, or a transaction between stages",
                **_silent_keys(),
                stage=_text("the stage; null between stages", null=True),
                span_id=_text("16 hex digits; null between stages", null=True),
                where=_text("host/process/thread", null=True),
                issue=_text("the sentence", null=True),
                stack=_text("where it hangs, where a span brought that", null=True),
            ),
        ),
        waiting=_list(
            "what waits for a worker, longest first, at most 50",
            _object(
                "a transaction in a queue",
                **_silent_keys(),
                stage=_text("the stage that it waits for", null=True),
                state=_text("`elsewhere`: it was handed over", enum=["queued", "elsewhere"]),
            ),
        ),
        stages=_map("by stage", _object("its tallies", **_tallies())),
        health=_object("what was let go, refused or lost", **_health_keys()),
        workers=_list(
            "the processes that beat, lost and troubled ones first, at most 50; without those lost "
            "for over an hour that left nothing open",
            _worker(),
        ),
        processes=_object(
            "all of them",
            alive=_count("that beat"),
            lost=_count("that fell silent"),
            services=_list("names of those that beat, at most 50", _text("`service.name`")),
        ),
        flow=_map("by stage", _object("how it goes against what is usual", **_flow())),
        pulse=_list("by pipeline, the busiest first", _pulse()),
        open=_open(),
        trends=_trends(),
    )


def _health() -> Schema:
    return _object(
        "what was let go, refused or lost, here and in the workers",
        as_of=_AS_OF,
        started_at=_time("when the service began"),
        uptime_seconds=_seconds("since then"),
        **_health_keys(),
        kept=_object(
            "what is in memory",
            transactions=_count("transactions"),
            users=_count("users"),
            workers=_count("processes"),
            spans_with_details=_count("spans whose metadata and stacks are known"),
        ),
        workers=_map("by worker", _free("what the process says of its own troubles")),
    )


_ANSWERS: Final = {
    "/api/dashboard": ("Everything a page shows", _dashboard),
    "/api/transactions": (
        "Transactions, newest first",
        lambda: _object(
            "a page; no row comes twice or is left out while others arrive",
            as_of=_AS_OF,
            transactions=_list(
                "the rows", _object("a transaction", **_row_keys())
            ),
            matched=_count("transactions that the filters take, over all pages"),
            kept=_count("transactions in memory"),
            next=_text("`cursor` of the next page; null on the last", null=True),
        ),
    ),
    "/api/transactions/{id}": ("One transaction", _transaction),
    "/api/recordings": (
        "Transactions that belong together, newest first",
        lambda: _object(
            "recordings of which the filters take a transaction",
            as_of=_AS_OF,
            recordings=_list("the rows", _recording()),
            matched=_count("recordings that the filters take"),
        ),
    ),
    "/api/issues": (
        "What goes wrong",
        lambda: _object(
            "issues",
            as_of=_AS_OF,
            patterns=_list(
                "the one that is new first", _pattern(new=_flag("first seen within the last hour"))
            ),
            recent=_list(
                "newest first", _recent_issue(pattern=_text("the pattern that it belongs to"))
            ),
        ),
    ),
    "/api/stages": (
        "How each stage goes",
        lambda: _object(
            "stages",
            as_of=_AS_OF,
            stages=_map("by stage", _object("a stage", **{**_tallies(), **_flow()})),
            trends=_trends(),
        ),
    ),
    "/api/workers": (
        "The processes that feed the service",
        lambda: _object(
            "workers", as_of=_AS_OF, workers=_list("lost ones first", _worker())
        ),
    ),
    "/api/health": ("What was let go, refused or lost", _health),
    "/healthz": (
        "Whether it lives; needs no token",
        lambda: _object("it does", status=_text("always", const="ok")),
    ),
}  # fmt: skip

_FILTERS: Final = {
    "user": _text("user id, exactly"),
    "conversation": _text("conversation or audio id, exactly"),
    "client": _text("client id, exactly"),
    "pipeline": _text("the pipeline that it runs, exactly"),
    "status": _text(f"some of {', '.join(_STATUSES)}, with commas"),
    "stage": _text("a stage that was attempted, or is waited for"),
    "text": _text("text in an issue or an error message; capitals do not matter"),
    "since": _text("created at or after; ISO 8601, UTC without a zone", format="date-time"),
    "until": _text("created before; likewise", format="date-time"),
}
_LIMIT: Final = {
    "limit": {
        "type": "integer", "minimum": 1, "maximum": queries.MOST_ROWS, "default": queries.ROWS,
        "description": "most rows",
    },
}  # fmt: skip
PARAMETERS: Final[dict[str, dict[str, Schema]]] = {
    "/api/transactions": {
        **_FILTERS, **_LIMIT, "cursor": _text("the `next` of the page before"),
    },
    "/api/recordings": {**_FILTERS, **_LIMIT},
    "/api/issues": _LIMIT,
}  # fmt: skip

ERROR: Final = _object(
    "what was wrong",
    error=_object(
        "the error",
        status=_count("the HTTP status"),
        message=_text("what was wrong, and the fix"),
    ),
)

_REFUSALS: Final = {
    "400": "not understood",
    "401": "the token is missing or wrong",
    "403": "without a token: asked for by a name that is not localhost",
    "404": "not there",
    "405": "another method; `Allow` names it",
    "408": "the body did not come in time",
    "413": "too large, packed or unpacked",
    "415": "a content type or encoding that is not taken",
    "429": "too many transactions begin; `Retry-After` says when to send again",
    "500": "a defect of the service",
    "503": "too much at once, or shutting down; `Retry-After`",
}
_READING: Final = ("400", "401", "403", "404", "405", "500", "503")


def _beat() -> Schema:
    limits = _map("seconds of silence that are normal, by stage", {"type": "number"})
    return {
        "type": "object",
        "description": "a sign of life; keys that are not known are ignored",
        "required": ["worker", "at_ns"],
        "properties": {
            "worker": _text("host/process, as in `otel_tracker.where`"),
            "service": _text("`service.name`"),
            "version": _text("`service.version`"),
            "at_ns": _count("now, by the sender's clock: nanoseconds since 1970"),
            "interval_s": {"type": "number", "description": "until the next beat, in seconds",
                           "default": 5.0},
            "started_ns": _count("when the process began: nanoseconds since 1970"),
            "is_last": _flag("it shuts down in order"),
            "open": {
                **_list(
                    "what is open: trace id (32 hex digits), span id (16), and the newest sign of "
                    "life in nanoseconds since 1970",
                    {"type": "array", "minItems": 3, "maxItems": 3},
                ),
                "maxItems": beats.MOST_OPEN,
            },
            "websockets": _map("open websockets by client", _count("how many")),
            "pipelines": _list(
                "declared pipelines",
                {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": _text("its name"),
                        "stages": _list("in order", _text("a stage")),
                        "stall_after": limits,
                    },
                },
            ),
            "stall_after": limits,
            "health": _free("plain data about the sender's own troubles"),
        },
    }  # fmt: skip


def _refusals(statuses: tuple[str, ...]) -> dict[str, Any]:
    content = {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {s: {"description": _REFUSALS[s], "content": content} for s in statuses}


def _get(path: str) -> dict[str, Any]:
    summary, schema = _ANSWERS[path]
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": one,
         "description": one["description"]}
        for name, one in PARAMETERS.get(path, {}).items()
    ]  # fmt: skip
    if "{id}" in path:
        means = (
            f"dashed, 32 hex digits, or at least {queries.SHORTEST_PREFIX} characters that only "
            "one has"
        )
        parameters.append(
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"},
             "description": means}
        )  # fmt: skip
    operation = {
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": summary, "content": {_JSON: {"schema": schema()}}},
            **_refusals(_READING if path != "/healthz" else ("405",)),
        },
    }
    if path == "/healthz":
        operation["security"] = []
    return {"get": operation}


def _traces() -> dict[str, Any]:
    request: Schema = {"description": "an ExportTraceServiceRequest; gzip, deflate or neither"}
    empty = {"description": "an empty ExportTraceServiceResponse, in the form of the request"}
    return {
        "post": {
            "summary": "Spans by OTLP/HTTP, as exporters and the Collector send them",
            "requestBody": {
                "required": True,
                "content": {_PROTOBUF: {"schema": request}, _JSON: {"schema": request}},
            },
            "responses": {
                "200": {
                    "description": empty["description"],
                    "content": {
                        _PROTOBUF: {"schema": empty},
                        _JSON: {"schema": _object("nothing")},
                    },
                },
                **_refusals(tuple(s for s in _REFUSALS if s != "404")),
            },
        }
    }


def _beats() -> dict[str, Any]:
    answer = _object(
        "what to send again",
        unknown=_list(
            "what is open there and not known here: trace id, span id",
            _list("two ids in hex", {"type": "string"}),
        ),
    )
    return {
        "post": {
            "summary": "A sign of life of a process, every few seconds",
            "requestBody": {"required": True, "content": {_JSON: {"schema": _beat()}}},
            "responses": {
                "200": {"description": "taken", "content": {_JSON: {"schema": answer}}},
                **_refusals(tuple(s for s in _REFUSALS if s not in ("404", "429"))),
            },
        }
    }


@lru_cache(maxsize=16)
def document(root: str = "") -> dict[str, Any]:
    """The document; not to be changed.

    Args:
        root: path under which the application is mounted.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "otel_tracker dashboard service",
            "version": "1",
            "description": "Times are ISO 8601 in UTC. What a span said comes out as JSON data, "
            "never as markup: escape it before it is shown.",
        },
        "servers": [{"url": root or "/"}],
        "security": [{"token": []}, {}],
        "paths": {
            "/v1/traces": _traces(),
            "/v1/beats": _beats(),
            **{path: _get(path) for path in _ANSWERS},
            "/openapi.json": {
                "get": {
                    "summary": "This document",
                    "parameters": [],
                    "responses": {
                        "200": {
                            "description": "OpenAPI 3.1",
                            "content": {_JSON: {"schema": _free("the document")}},
                        },
                        **_refusals(("401", "403", "405")),
                    },
                }
            },
        },
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
