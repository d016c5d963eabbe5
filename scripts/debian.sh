# Sourced by scripts/setup, scripts/testbed and others: where everything lands, and how Debian packages get there. Packages come
# through the machine's own settings, mirror and proxy; what is unpacked is for this project only, nothing of it is installed.
# Sets root (of this clone) and cache ($IMGPROXY_CACHE or .cache), and takes the cache's lock: one set-up at a time in one
# cache. The lock is descriptor 9; children that may outlive the script must not inherit it (9>&-).
# shellcheck shell=bash

me=${0##*/}
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
mkdir -p "${IMGPROXY_CACHE:-$root/.cache}"
cache=$(cd "${IMGPROXY_CACHE:-$root/.cache}" && pwd)

say() { echo "$me: $*"; }
die() { echo "$me: $*" >&2; exit 1; }

exec 9>"$cache/.lock"
flock 9
rm -rf "$cache"/unpacking.*

is_stamped() { # file wanted
    [[ -e $1 && $(<"$1") == "$2" ]]
}

# Names the packages of those commands that are not there.
missing_packages() { # command:package...
    local command_and_package
    for command_and_package in "$@"; do
        command -v "${command_and_package%%:*}" >/dev/null || echo "${command_and_package#*:}"
    done
}

install_packages() { # package...
    (($#)) || return 0
    say "installing $*"
    [[ $(id -u) == 0 ]] || die "must be root to install: $*"
    apt-get update -qq 9>&-
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" 9>&- >/dev/null
}

# The machine's Debian mirror holds for the unpacked suites too.
debian_mirror() {
    { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' || true; } |
        sort -u | head -n 1
}

# A new folder in the cache; the next set-up removes it if this one does not come to its end.
scratch_folder() { mktemp -d "$cache/unpacking.XXXXXX"; }

unpack_debian() { # scratch-folder suite architecture packages; the tree is scratch-folder/root
    local scratch=$1 suite=$2 architecture=$3 packages=$4 mirror
    apt-config dump --format '%f "%v";%n' Acquire::http::Proxy Acquire::https::Proxy >"$scratch/apt.conf"
    echo 'Acquire::Check-Valid-Until "false";' >>"$scratch/apt.conf"
    mirror=$(debian_mirror)
    if ! mmdebstrap --quiet --variant=extract --architectures="$architecture" --include="$packages" \
        --aptopt="$scratch/apt.conf" "$suite" "$scratch/root" ${mirror:+"$mirror"} >"$scratch/log" 2>&1 9>&-; then
        cat "$scratch/log" >&2
        rm -rf "$scratch"
        die "unpacking Debian $suite ($packages) failed (log above)"
    fi
}

# The dynamic loader of an unpacked tree. With --library-path and its own folder it runs that tree's programs with that
# tree's libraries: nothing of the system's is used, or changed.
loader_in() { # tree
    local loaders=("$1"/usr/lib/*/ld-linux-*.so.*)
    [[ ${#loaders[@]} == 1 && -e ${loaders[0]} ]] || die "not exactly one dynamic loader in $1/usr/lib/*"
    echo "${loaders[0]}"
}

# A source package, signed and checked, in a folder; fetched once. --tar-only: only what Debian got from its authors.
fetch_source() { # folder suite package [--tar-only]
    local folder=$1 suite=$2 package=$3 apt=$1/apt mirror options
    ! compgen -G "$folder/${package}_*.orig.tar.*" >/dev/null || return 0
    say "source of $package from Debian $suite"
    mkdir -p "$apt"/{lists,archives}/partial
    mirror=$(debian_mirror)
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
    options=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update 9>&- &&
        (cd "$folder" && apt-get "${options[@]}" source --download-only --only-source "${@:4}" "$package" 9>&-) ||
        { rm -f "$folder/${package}"_*; die "Debian's source of $package cannot be fetched"; }
}
