# shellcheck shell=bash
# Functions that the other scripts share. Sourcing it starts nothing.

# From sysexits.h: a wrong command line; a missing requirement.
# shellcheck disable=SC2034  # used where this is sourced
EX_USAGE=64 EX_UNAVAILABLE=69

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

say() { echo "handoff: $*" >&2; }

die() { # STATUS MESSAGE…
    say "${@:2}"
    exit "$1"
}

have() { command -v "$1" >/dev/null; }

# Prints the comment at the top of the calling script.
usage() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
    exit "$EX_USAGE"
}

# ── packages ────────────────────────────────────────────────────────────────────────────────────

# HANDOFF_INSTALL=no forbids all installations.
can_install() {
    [[ ${HANDOFF_INSTALL:-yes} == yes ]] && have apt-get && { ((EUID == 0)) || sudo -n true; }
} 2>/dev/null

install_packages() { # PACKAGE…
    local as_root=()
    ((EUID == 0)) || as_root=(sudo -n)
    say "installing $* (once, with apt-get) …"
    # Signals take effect after the installation.
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    "${as_root[@]}" bash "$here/apt-install" "$@" </dev/null >&2
    trap - INT TERM HUP
}

# Installs a package of another Debian into a folder of the cache, unless it exists, and prints the folder.
# VARIANT is mmdebstrap's: `extract` unpacks the package and its dependencies, and runs nothing.
debian_root() { # NAME SUITE VARIANT PACKAGE
    local root=${XDG_CACHE_HOME:-$HOME/.cache}/handoff/$1-$2 building folder
    if [[ ! -d $root ]]; then
        ((EUID == 0)) || die "$EX_UNAVAILABLE" "$4 in a folder needs root, to install and to run it"
        # Ubuntu lacks Debian's keys.
        have mmdebstrap && [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] ||
            { can_install && install_packages mmdebstrap debian-archive-keyring; } ||
            die "$EX_UNAVAILABLE" "cannot install the packages mmdebstrap and debian-archive-keyring; install them by hand"
        say "creating $root (once, with mmdebstrap) …"
        mkdir -p "${root%/*}"
        building=$(mktemp -d "$root.XXXXXX")
        # shellcheck disable=SC2064  # expanded now: the variable is local
        trap "rm -rf '$building'" EXIT
        # The lists of an unreleased or archived suite expire, and a mirror may be older.
        mmdebstrap --quiet --variant="$3" --include="$4" \
            --aptopt='Acquire::Check-Valid-Until "false"' "$2" "$building" >&2
        mkdir -p "$building"/{etc,proc,dev,srv,tmp}
        # `extract` unpacks no package that makes the links of a merged /usr.
        for folder in lib lib64; do
            [[ -e $building/$folder ]] || ln -s "usr/$folder" "$building/$folder"
        done
        # RabbitMQ's node name is handoff-PORT@localhost.
        echo '127.0.0.1 localhost' >"$building/etc/hosts"
        chmod 755 "$building"
        mv -T "$building" "$root"
    fi
    echo "$root"
}

have_docker() { have docker && docker info >/dev/null 2>&1; }

# ── nodes ───────────────────────────────────────────────────────────────────────────────────────

# Whether a process runs and belongs to the node. The processes of a node have its folder in their
# environment as HANDOFF_NODE; a pid in a file may belong to another process by now. A dead process that
# is not yet reaped has no environment and counts as ended.
alive() { # NODE PID
    local environ='' state='' log
    # The environment is also empty for a moment during exec.
    while [[ -n $2 && -z $environ && $state != Z ]]; do
        # Redis before 6.2 overwrites its environment with the title of its process; its log shows whose it is.
        log=$(readlink "/proc/$2/fd/1") || true
        [[ $log != "$1"/out.log && $log != "$1".ending-*/out.log ]] || return 0
        environ=$(tr '\0' '\n' <"/proc/$2/environ") && read -r _ _ state _ <"/proc/$2/stat" || return
    done 2>/dev/null
    grep -qxF "HANDOFF_NODE=$1" <<<"$environ"
}

pid_of() { cat "$1" 2>/dev/null || true; }

# Starts a server in a new session, which Ctrl-C in this terminal does not reach. Writes its pid before it
# runs, so that destroy_node always finds it; if the folder is gone by then, the server does not start.
spawn() { # NODE PIDFILE COMMAND…
    rm -f "$2"
    # shellcheck disable=SC2016  # for the inner shell to expand
    (HANDOFF_NODE=$1 setsid sh -c 'echo $$ >"$0" && exec "$@"' "${@:2}" </dev/null >>"$1/out.log" 2>&1 &)
    until [[ -s $2 ]]; do
        [[ -d $1 ]] || return
        sleep 0.01
    done
}

# Signals the process in PIDFILE, if it runs.
signal() { # NODE SIGNAL PIDFILE
    local pid
    pid=$(pid_of "$3")
    ! alive "$1" "$pid" || kill "-$2" "$pid" 2>/dev/null || true
}

# Waits until the process in PIDFILE has ended, for at most SECONDS.
await_end() { # NODE PIDFILE SECONDS
    local pid deadline=$((SECONDS + $3))
    pid=$(pid_of "$2")
    while alive "$1" "$pid" && ((SECONDS < deadline)); do
        sleep 0.02
    done
}

# Kills the processes of a node, those in the pid files of FOLDER and the helpers of Erlang, and waits
# until they have ended.
kill_processes() { # NODE FOLDER
    local pidfile environs deadline=$((SECONDS + 10))
    for pidfile in "$2"/*pid; do
        signal "$1" KILL "$pidfile"
    done
    for pidfile in "$2"/*pid; do
        await_end "$1" "$pidfile" 10
    done
    while ((SECONDS < deadline)); do
        environs=$(grep -lzxF "HANDOFF_NODE=$1" /proc/[0-9]*/environ 2>/dev/null) || true
        [[ -n $environs ]] || return 0
        cut -d/ -f3 <<<"$environs" | xargs kill -KILL 2>/dev/null || true
        sleep 0.02
    done
}

# Ends a node in any state, even while it starts: renames the folder first, and a server does not start
# without its folder.
destroy_node() { # NODE
    local node=$1 gone=$1.ending-$$ engine=native container
    mv "$node" "$gone" 2>/dev/null || return 0
    # shellcheck source=/dev/null
    . "$gone/settings" 2>/dev/null || true
    if [[ $engine == docker ]]; then
        docker rm --force --volumes "$container" >/dev/null 2>&1 || true
    fi
    kill_processes "$node" "$gone"
    rm -rf "$gone" 2>/dev/null || { sleep 0.2 && rm -rf "$gone"; }
}

# Destroys all nodes in a folder, and removes it.
destroy_nodes() { # FOLDER
    local folder
    for folder in "$1"/*/; do
        [[ ! -d $folder ]] || destroy_node "${folder%/}" &
    done
    wait
    rm -rf "$1"
}

# Sets `inside` to a prefix that runs a command inside ROOT, where /srv is FOLDER and /tmp is the host's,
# with the certificates of tests. The mounts are in a separate namespace and end with its processes.
inside_root() { # ROOT FOLDER
    # shellcheck disable=SC2016,SC2034  # for the inner shell to expand; used where this is sourced
    inside=(unshare --mount sh -c '
        mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" && mount --bind /tmp "$0/tmp" &&
            mount --bind "$1" "$0/srv" && shift && exec chroot "$0" "$@"' "$1" "$2")
}

# ── ports ───────────────────────────────────────────────────────────────────────────────────────

# Prints the inodes of the sockets that listen on PORT.
listeners() { # PORT
    awk -v port="$(printf ':%04X$' "$1")" '$4 == "0A" && $2 ~ port {print $10}' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null || true
}

# Sets `ports` to free ports from FIRST to LAST, below the ephemeral range. Starts at a port derived from the pid,
# so that two scripts that run at the same time choose different ones: STEP is at least COUNT.
choose_ports() { # COUNT [FIRST LAST STEP]
    # Below 20000: a node of a Redis Cluster also takes the port 10000 above its own.
    local first=${2:-10000} last=${3:-19999} step=${4:-4} port
    port=$((first + $$ * step % (last - first + 1)))
    ports=()
    while ((${#ports[@]} < $1)); do
        [[ -n $(listeners "$port") ]] || ports+=("$port")
        port=$((port < last ? port + 1 : first))
    done
}

# Whether PID listens on PORT, and not another process.
listens() { # PID PORT
    local inode
    for inode in $(listeners "$2"); do
        find "/proc/$1/fd" -lname "socket:\[$inode\]" 2>/dev/null | grep -q . && return
    done
    return 1
}

# Whether PORT answers GREETING with FIRST_BYTE. An open port is not enough: RabbitMQ opens it before it
# can serve, and Docker before the server runs.
answers() { # PORT GREETING FIRST_BYTE
    local byte=
    # shellcheck disable=SC2059  # a greeting is written with escapes
    {
        exec 3<>"/dev/tcp/127.0.0.1/$1" || return
        printf "$2" >&3
        LC_ALL=C IFS='' read -r -t 2 -n 1 -d '' byte <&3 || true
        exec 3>&-
    } 2>/dev/null
    [[ $byte == "$3" ]]
}
