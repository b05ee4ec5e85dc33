"""Peers against bare OpenTelemetry, each in an environment of its own. `make bench-peers`."""
