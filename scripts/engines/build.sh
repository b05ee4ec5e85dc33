#!/usr/bin/env bash
# Builds the engines that the tests run, from their Go modules, into a cache outside the tree:
# the OpenTelemetry Collector, Jaeger, and Docker's compose (which only checks docker-compose.yml).
# Once about 13 minutes on 2 cores; then nothing. Prints the folder, and says on stderr what it does.
set -euo pipefail

collector=0.159.0
jaeger=1.76.0 # the source of Jaeger 2.13.0, the newest that is published as a Go module
compose=2.40.3

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${OTEL_TRACKER_ENGINES:-${XDG_CACHE_HOME:-$HOME/.cache}/otel-tracker-engines}"

# A binary is named by what it was built from: a changed recipe builds anew beside the old one.
recipe="$(sha256sum "$here/collector.yaml" | cut -c1-8)"
otelcol="$cache/otelcol-$collector-$recipe"

mkdir -p "$cache"
# Only one build at a time: another one waits, and then finds everything there.
exec 9>"$cache/.lock"
flock 9

work=""
trap 'rm -rf "$work"' EXIT

# build NAME COMMAND...: runs the command in an empty folder; it must leave a program ./out there.
build() {
  local target="$1" started
  shift
  [[ -x "$target" ]] && return
  command -v go >/dev/null || {
    echo "The engines are built with Go, and there is no 'go' here. Install Go 1.25 or newer." >&2
    exit 1
  }
  echo "Building $(basename "$target") (minutes, this once)" >&2
  started=$SECONDS
  work="$(mktemp -d)"
  (cd "$work" && "$@") >&2
  mv "$work/out" "$target" # last, so that a broken build is repeated
  rm -rf "$work"
  echo "Built $(basename "$target") in $((SECONDS - started)) s" >&2
}

build_collector() {
  GOBIN="$PWD" go install "go.opentelemetry.io/collector/cmd/builder@v$collector"
  ./builder --config "$here/collector.yaml"
  mv otelcol/otelcol out
}

# program MODULE VERSION PACKAGE: `go install` refuses a module whose go.mod replaces or excludes
# others, and the checksum database does not know all that Jaeger depends on. So each is built as a
# tool of a module of its own, with the go.sum that came with the verified module.
program() {
  local module="$1" version="$2" package="$3"
  go mod init engines
  go mod download "$module@$version"
  cp "$(go list -m -f '{{.Dir}}' "$module@$version")/go.sum" go.sum
  chmod u+w go.sum
  go get -tool "$module/$package@$version"
  go build -o out "$module/$package"
}

build "$otelcol" build_collector
build "$cache/jaeger-$jaeger" program github.com/jaegertracing/jaeger "v$jaeger" cmd/jaeger
build "$cache/docker-compose-$compose" program github.com/docker/compose/v2 "v$compose" cmd

# The names without versions are what the tests start.
ln -sfn "$(basename "$otelcol")" "$cache/otelcol"
ln -sfn "jaeger-$jaeger" "$cache/jaeger"
ln -sfn "docker-compose-$compose" "$cache/docker-compose"
echo "$cache"
