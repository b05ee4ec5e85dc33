"""Logfire at its defaults, but for the two that would send and print.

Without sending, Logfire makes no pending span, of which it otherwise sends one when a span starts:
what is measured here is less than its users pay.
"""

from __future__ import annotations

import logfire

from ._bare import ATTRIBUTES, Discard, measure, stage


def main() -> None:
    discard = Discard()
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[discard])
    decorated = logfire.instrument("stage")(stage)

    def managed() -> None:
        with logfire.span("stage", **ATTRIBUTES):
            pass

    calls = measure("with logfire.span", managed, "logfire")
    calls += measure("@logfire.instrument", lambda: decorated(**ATTRIBUTES), "logfire")
    assert calls == discard.seen()


if __name__ == "__main__":
    main()
