#!/bin/sh
# The tests of keys and budgets on PostgreSQL: starts a server of its own in a temporary folder, on a Unix socket only, runs
# what the tests ignore without one, and ends it.
# PostgreSQL comes from Debian's packages and is installed if it is missing (that wants root). Arguments go to cargo test.
set -eu
cd "$(dirname "$0")/.."

find_bin() {
  for folder in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
    if [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ]; then echo "$folder"; return; fi
  done
}
bin=$(find_bin)
if [ -z "$bin" ]; then
  DEBIAN_FRONTEND=noninteractive apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends postgresql
  bin=$(find_bin)
fi

folder=$(mktemp -d)
# PostgreSQL refuses to run as root.
as_user() { "$@"; }
if [ "$(id -u)" = 0 ]; then
  chown postgres "$folder"
  as_user() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
fi
chmod 711 "$folder"
finish() {
  if [ -e "$folder/data/postmaster.pid" ]; then as_user "$bin/pg_ctl" -D "$folder/data" -s -m immediate stop; fi
  rm -rf "$folder"
}
trap finish EXIT
trap 'exit 1' INT TERM

as_user "$bin/initdb" -D "$folder/data" -U spillway --auth=trust --encoding=UTF8 --locale=C >"$folder/initdb.log" 2>&1 ||
  { cat "$folder/initdb.log"; exit 1; }
as_user "$bin/pg_ctl" -D "$folder/data" -s -w -l "$folder/server.log" \
  -o "-k $folder -c listen_addresses= -c max_connections=300" start || { cat "$folder/server.log"; exit 1; }

# A socket's folder is written as a host whose slashes are escaped.
host=$(printf %s "$folder" | sed 's:/:%2F:g')
SPILLWAY_TEST_POSTGRES="postgres://spillway@$host/postgres"
export SPILLWAY_TEST_POSTGRES
if [ $# -eq 0 ]; then set -- --lib gateway::; fi
# The whole workspace's choice of features: what CI has built is not built again for one crate's.
cargo test --locked --workspace --features spillway-node/validator "$@" -- --ignored
