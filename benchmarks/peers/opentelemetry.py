"""OpenTelemetry's own decorator: its context manager, used as one."""

from __future__ import annotations

from ._bare import ATTRIBUTES, Discard, measure, provider


def main() -> None:
    discard = Discard()
    tracer = provider(discard).get_tracer("decorator")

    @tracer.start_as_current_span("stage", attributes=ATTRIBUTES)
    def decorated() -> None:
        pass

    assert measure("@tracer.start_as_current_span", decorated) == discard.seen()


if __name__ == "__main__":
    main()
