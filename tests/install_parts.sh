#!/bin/sh
# Installs the real parts that tests drive: Node, Chromium and Redis from Debian's packages where we are root, and the npm
# packages of each lock file. What can't be had is left out; its tests say so by name, and fail where CI is set.
set -eu
cd "$(dirname "$0")"

missing=""
command -v node >/dev/null && command -v npm >/dev/null || missing="$missing nodejs npm"
command -v chromium >/dev/null || missing="$missing chromium"
command -v redis-server >/dev/null || missing="$missing redis-server"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing$missing"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
            echo "could not install$missing" >&2
    else
        echo "not installed:$missing (their tests are skipped)" >&2
    fi
fi

if command -v npm >/dev/null; then
    for lock in */package-lock.json ../examples/*/package-lock.json; do
        folder=${lock%/*}
        if [ ! -e "$folder/node_modules/.package-lock.json" ] || [ "$lock" -nt "$folder/node_modules/.package-lock.json" ]; then
            echo "npm ci in tests/$folder"
            (cd "$folder" && npm ci --silent --no-audit --no-fund) || echo "npm ci failed in tests/$folder" >&2
        fi
    done
fi
