#!/usr/bin/env bash
# The foreign programs that the tests meet: HAProxy, nginx, OpenSSL, PostgreSQL, Chromium, Go, swtpm with tpm2-tools and Fashion-MNIST from Debian, an OpenID
# provider, an accessibility checker and Sigstore's verifier from npm, aics-tlog from PyPI (where there is a Python of 3.12
# or newer: Debian 12 has none, Debian 13 and most CI images do).
# What is there already is left alone. What cannot be had is named, and the exit status is 1: the tests that need it
# skip, and say so. A Python newer than the system's is not asked for.
set -uo pipefail
cd "$(dirname "$0")"
export PATH="$PATH:/usr/sbin:/sbin"

missing() {
  local name
  for name in haproxy nginx openssl node npm chromium swtpm; do command -v "$name" >/dev/null || echo "$name"; done
  command -v go >/dev/null || echo golang-go
  command -v tpm2_quote >/dev/null || echo tpm2-tools
  [ -d /usr/share/gocode/src/golang.org/x/mod/sumdb/tlog ] || echo golang-golang-x-mod-dev
  [ -d /usr/share/datasets/fashion-mnist ] || echo dataset-fashion-mnist
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
if [ ! -x .aics-tlog/bin/aics-tlog ]; then
  newer=""
  pyenvs=$(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.1[2-9].*/bin/python3")  # which need not be on PATH
  for name in python3.14 python3.13 python3.12 python3 $pyenvs; do
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then newer=$name && break; fi
  done
  if [ -z "$newer" ]; then
    echo "test peers: no Python 3.12 or newer; the tests with aics-tlog will be skipped" >&2  # not a failure: see above
  elif ! { "$newer" -m venv .aics-tlog && .aics-tlog/bin/pip install -q --disable-pip-version-check 'aics-tlog==0.2.1'; }; then
    rm -rf .aics-tlog
    echo "test peers: aics-tlog could not be installed; the tests with it will be skipped" >&2
    status=1
  fi
fi
exit "$status"
