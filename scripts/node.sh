# shellcheck shell=bash disable=SC2034,SC2154  # shared variables
# Shared by rabbitmq-node and redis-node: runs a server in a folder, as a native process or, if it is not
# installed and cannot be, in Docker. The script that sources this file defines:
#
#   name package            the name of the server and its Debian package
#   image container_port container_command
#   port_count              the number of ports it needs; clients use the first
#   start_seconds           the time limit for a start
#   root                    the root directory of the installation, if it is not /
#   find_native start_native ready url   functions
#
# `settings` in the folder stores the choices of the first start.

load() { # DIR
    node=$(realpath -m -- "$1")
    [[ -e $node/settings ]] || die 1 "no $name in $node"
    # shellcheck source=/dev/null
    . "$node/settings"
    port=${ports[0]}
}

# HANDOFF_SERVICES=docker uses Docker even if the server is installed.
missing() { [[ -z $root && ${HANDOFF_SERVICES:-native} != docker ]] && ! find_native; }

# Sets `engine`, and installs the server if necessary.
choose_engine() {
    engine=native
    if [[ -n $root ]]; then
        find_native || die "$EX_UNAVAILABLE" "$name is not installed in $root"
        return
    fi
    if missing && can_install; then install_packages "$package" || true; fi
    [[ ${HANDOFF_SERVICES:-native} == docker ]] || ! find_native || return 0
    engine=docker
    have_docker || die "$EX_UNAVAILABLE" \
        "cannot install $package; install it by hand, or start Docker"
}

create() { # ARGUMENT…
    choose_engine
    [[ -d $node ]] || mkdir "$node"
    choose_ports "$port_count"
    printf '%s\n' "engine=$engine" "ports=(${ports[*]})" "container=handoff-${ports[0]}-$$" \
        "root=${root:+$(printf %q "$root")}" "arguments=(${*@Q})" >"$node/settings"
}

running() {
    case $engine in
    native) alive "$node" "$(pid_of "$node/pid")" ;;
    docker) [[ $(docker inspect --format '{{.State.Running}}' "$container" 2>&1) == true ]] ;;
    esac
}

start_docker() {
    if ! docker start "$container" >/dev/null 2>&1; then
        docker image inspect "$image" >/dev/null 2>&1 || say "pulling $image (once, with Docker) …"
        docker run --quiet --detach --name "$container" --label "handoff=${HANDOFF_SERVICES_DIR:-}" \
            --hostname "$container" --publish "127.0.0.1:$port:$container_port" \
            "$image" "${container_command[@]}" "${arguments[@]}" >/dev/null ||
            die "$EX_UNAVAILABLE" "Docker could not run $image; see its output above"
    fi
    # Fails if destroy_node has removed the folder in the meantime: then remove the container, too.
    docker inspect --format '{{.State.Pid}}' "$container" >"$node/pid" ||
        { docker rm --force --volumes "$container" >/dev/null; exit 1; }
}

start() { # [--no-wait] DIR [ARGUMENT…]
    local wait=true
    [[ $1 != --no-wait ]] || { wait=false && shift; }
    node=$(realpath -m -- "$1")
    [[ -e $node/settings ]] || create "${@:2}"
    load "$node"
    running || "start_$engine"
    ! $wait || await_start
    url
}

await_start() {
    local deadline=$((SECONDS + start_seconds))
    until ready && { [[ $engine == docker ]] || listens "$(pid_of "$node/pid")" "$port"; }; do
        running || fail "$name ended while it started"
        ((SECONDS < deadline)) || fail "$name was not ready within $start_seconds s"
        sleep 0.1
    done
}

fail() { # MESSAGE
    # Another process has destroyed the node on purpose.
    [[ -d $node ]] || exit 1
    case $engine in
    native) tail -q -n 20 "$node"/out.log "$node"/log/*.log ;;
    docker) docker logs --tail 40 "$container" 2>&1 ;;
    esac >&2 2>/dev/null || true
    die 1 "$1; its log is above and in $node"
}

kill_node() {
    case $engine in
    native) kill_processes "$node" "$node" ;;
    docker) ! running || docker kill "$container" >/dev/null ;;
    esac
}

stop() {
    thaw
    case $engine in
    native)
        signal "$node" TERM "$node/pid"
        await_end "$node" "$node/pid" 60
        kill_processes "$node" "$node"
        ;;
    docker) docker stop --time 60 "$container" >/dev/null ;;
    esac
}

freeze() {
    case $engine in
    native) signal "$node" STOP "$node/pid" ;;
    docker) docker pause "$container" >/dev/null ;;
    esac
}

thaw() {
    case $engine in
    native) signal "$node" CONT "$node/pid" ;;
    docker) docker unpause "$container" >/dev/null 2>&1 || true ;;
    esac
}

node_main() {
    local command=${1:-}
    if [[ $command == missing ]]; then
        # For with-services, which installs all missing packages together.
        ! missing || echo "$package"
        exit
    fi
    (($# >= 2)) || usage
    shift
    case $command in
    start) start "$@" ;;
    destroy) destroy_node "$(realpath -m -- "$1")" ;;
    url | kill | stop | freeze | thaw | ctl)
        load "$1"
        shift
        [[ $command != kill ]] || command=kill_node
        declare -F "$command" >/dev/null || usage
        "$command" "$@"
        ;;
    *) usage ;;
    esac
}
