#!/bin/sh
# Give a fresh deployment to two users, so that the gateway can reach neither keys nor models, and the runtime neither
# TLS keys nor token keys. Run it as root, once, after `sealgate init` and before the first start.
#
#   deploy/split-users.sh STATE
#
# The names may be changed by RUNTIME_USER, GATEWAY_USER and LINK_GROUP (who may use the socket and read the log).
set -eu
state=${1:?usage: split-users.sh STATE}
runtime=${RUNTIME_USER:-sealgate-runtime}
gateway=${GATEWAY_USER:-sealgate-gateway}
link=${LINK_GROUP:-sealgate-link}
[ -f "$state/deployment.toml" ] || { echo "$state is no deployment: make one with sealgate init" >&2; exit 1; }

chown -R "$runtime:$runtime" "$state"
chown -R "$gateway:$gateway" "$state/pki" "$state/tokens"

# The gateway's processes share a folder: proofs of possession (DPoP) that were used.
install -d -o "$gateway" -g "$gateway" -m 0700 "$state/run/gateway"

# Both read the settings and the policy; the gateway passes through to the socket and to the log.
[ -d "$state/policy-history" ] || install -d -o "$runtime" "$state/policy-history"
chgrp "$link" "$state" "$state/policy" "$state/policy-history" "$state/run" "$state/log"
chmod 0710 "$state"
chmod 0750 "$state/policy" "$state/policy-history" "$state/run"
chmod 2750 "$state/log"

# The log's database is written by the runtime alone and read by the gateway; SQLite gives its two companion files the
# same mode, and the folder gives them the group.
[ -e "$state/log/audit.sqlite" ] || install -o "$runtime" -g "$link" -m 0640 /dev/null "$state/log/audit.sqlite"
chgrp "$link" "$state/log/audit.sqlite"
chmod 0640 "$state/log/audit.sqlite"

# The runtime opens its socket to the group.
grep -q '^socket_group' "$state/deployment.toml" ||
    sed -i "s/^\[runtime\]/[runtime]\nsocket_group = \"$link\"/" "$state/deployment.toml"
