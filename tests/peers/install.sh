#!/usr/bin/env bash
# The foreign programs that the tests meet: HAProxy, nginx, OpenSSL, PostgreSQL, Chromium and Go from Debian, an OpenID
# provider, an accessibility checker and Sigstore's verifier from npm.
# What is there already is left alone. What cannot be had is named, and the exit status is 1: the tests that need it
# skip, and say so.
set -uo pipefail
cd "$(dirname "$0")"
export PATH="$PATH:/usr/sbin:/sbin"

missing() {
  local name
  for name in haproxy nginx openssl node npm chromium; do command -v "$name" >/dev/null || echo "$name"; done
  command -v go >/dev/null || echo golang-go
  [ -d /usr/share/gocode/src/golang.org/x/mod/sumdb/tlog ] || echo golang-golang-x-mod-dev
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || echo postgresql
}

wanted=$(missing)
if [ -n "$wanted" ]; then
  packages=$(printf '%s\n' $wanted | sed 's/^node$/nodejs/')
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # RUNLEVEL=1: a package must not start its service here.
    apt-get update -qq && for package in $packages; do
      RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
        echo "test peers: apt-get could not install $package" >&2
    done
  else
    echo "test peers: install as root: apt-get install" $packages >&2
  fi
fi

status=0
for name in $(missing); do
  echo "test peers: no $name; the tests that need it will be skipped" >&2
  status=1
done
if command -v npm >/dev/null; then
  if ! cmp -s package-lock.json node_modules/.installed; then
    if npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null; then
      cp package-lock.json node_modules/.installed
    else
      echo "test peers: npm ci failed; the tests with the OpenID provider and Sigstore's verifier will be skipped" >&2
      status=1
    fi
  fi
fi
exit "$status"
