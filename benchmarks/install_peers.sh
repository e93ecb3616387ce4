#!/bin/sh
# Installs what benchmarks/peers needs beside Python packages, from Debian's where we are root: node, go, nginx with
# nchan, wrk; and the npm packages of an AI SDK route. What can't be had is left out of the comparison, which says so by name.
set -eu

missing=""
command -v node >/dev/null || missing="$missing nodejs"
command -v go >/dev/null || missing="$missing golang-go"
command -v nginx >/dev/null || missing="$missing nginx"
[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || missing="$missing libnginx-mod-nchan"
command -v wrk >/dev/null || missing="$missing wrk"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing$missing"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
            echo "could not install$missing" >&2
    else
        echo "not installed:$missing (left out)" >&2
    fi
fi

cd "$(dirname "$0")/peers/relay"
if command -v npm >/dev/null && { [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; }; then
    npm ci --silent --no-audit --no-fund || echo "npm ci failed in benchmarks/peers/relay" >&2
fi
