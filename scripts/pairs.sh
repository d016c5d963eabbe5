# Sourced by scripts/setup-npb and scripts/setup-redis: the compiler, and where pairs go.
# Sets root (of this clone). A failed build shows its output.
# shellcheck shell=bash

me=${0##*/}
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)

say() { echo "$me: $*"; }
die() { echo "$me: $*" >&2; exit 1; }

make_compiler() { # sets hetcc
    "$root/scripts/setup"
    "$root/scripts/toolchain" setup
    hetcc=$(cd "${IMGPROXY_CACHE:-$root/.cache}" && pwd)/venv/bin/hetcc
}

make_quietly() { # log, arguments of make
    local log=$1
    shift
    make "$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
}

# What migrations read: DIR/NAME, which runs here, DIR/bin/NAME_x86-64, DIR/bin/NAME_aarch64.
lay_out() { # executable folder name
    mkdir -p "$2/bin"
    cp "$1_x86-64" "$2/bin/$3_x86-64"
    cp "$1_aarch64" "$2/bin/$3_aarch64"
    cp "$1" "$2/$3"
}
