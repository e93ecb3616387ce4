#!/bin/sh
# Installs what benchmarks/peers needs beside Python packages, from Debian's where we are root: node, go, nginx with
# nchan, wrk, Redis; and the npm packages of an AI SDK route and of resumable-stream. What can't be had is left out of the comparison, which says so by name.
set -eu

missing=""
command -v node >/dev/null || missing="$missing nodejs"
command -v go >/dev/null || missing="$missing golang-go"
command -v nginx >/dev/null || missing="$missing nginx"
[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || missing="$missing libnginx-mod-nchan"
command -v wrk >/dev/null || missing="$missing wrk"
command -v redis-server >/dev/null || missing="$missing redis-server"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing$missing"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
            echo "could not install$missing" >&2
    else
        echo "not installed:$missing (left out)" >&2
    fi
fi

cd "$(dirname "$0")/peers"
for folder in relay resumable; do
    if command -v npm >/dev/null && { [ ! -e $folder/node_modules/.package-lock.json ] || [ $folder/package-lock.json -nt $folder/node_modules/.package-lock.json ]; }; then
        (cd $folder && npm ci --silent --no-audit --no-fund) || echo "npm ci failed in benchmarks/peers/$folder" >&2
    fi
done
