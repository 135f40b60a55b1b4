# shellcheck shell=bash disable=SC2154  # variables of test-image
# What test-image checks of an image alone, without RabbitMQ and Redis. `image` is its name, and `project` a unique
# prefix for the names of containers and networks.

config() { docker image inspect --format "{{$1}}" "$image"; } # TEMPLATE

expect() { # WHAT EXPECTED ACTUAL
    [[ $3 == "$2" ]] || die 1 "$1 of the image: \"$3\", not \"$2\""
}

# Fails for nothing that a base may add, but for what the image must say.
check_configuration() {
    local label
    [[ $(config .Config.User) =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] ||
        die 1 "the image runs as \"$(config .Config.User)\", not as a numeric user other than root"
    # Not through a shell, which the image does not have.
    expect "health check" '["CMD","/usr/local/bin/handoff","healthcheck"]' "$(config 'json .Config.Healthcheck.Test')"
    expect "entry point" '["/usr/local/bin/handoff"]' "$(config 'json .Config.Entrypoint')"
    expect "exposed ports" '{"9464/tcp":{}}' "$(config 'json .Config.ExposedPorts')"
    expect "stop signal" SIGTERM "$(config .Config.StopSignal)"
    [[ $(config 'json .Config.Env') == *'"HANDOFF_HTTP_ADDR=[::]:9464"'* ]] || die 1 "the image does not set HANDOFF_HTTP_ADDR"
    for label in title description licenses base.name version revision; do
        [[ $(config "index .Config.Labels \"org.opencontainers.image.$label\"") ]] || die 1 "the image has no label $label"
    done
}

# Shells, package managers and other programs, by name and by place.
check_files() {
    local container files found
    files=$(mktemp)
    container=$(docker create "$image")
    docker export "$container" | tar -t >"$files"
    docker rm "$container" >/dev/null
    found=$(grep -E '(^|/)(sh|bash|dash|ash|ksh|zsh|busybox|toybox|apt|apt-get|dpkg|apk|rpm|dnf|perl|python[0-9.]*|env|cat|ls|curl|wget|openssl)$' "$files" || true)
    [[ -z $found ]] || die 1 "the image contains programs: $found"
    found=$(grep -E '(^|/)(s?bin|libexec|busybox)/.*[^/]$' "$files" | grep -vx usr/local/bin/handoff || true)
    [[ -z $found ]] || die 1 "the image contains programs: $found"
    grep -qx etc/ssl/certs/ca-certificates.crt "$files" || die 1 "the image contains no certificate authorities"
    rm -f "$files"
    size=$(($(config .Size) / 1000000))
    ((size <= 60)) || die 1 "the image has $size MB; it must have at most 60"
    say "the image has $size MB and contains no other program"
}

# Docker's status is 127 for a program that the image does not contain.
check_no_shell() {
    local program status output
    for program in sh /bin/sh bash /busybox/sh; do
        status=0
        output=$(docker run --rm --entrypoint "$program" "$image" -c true 2>&1) || status=$?
        ((status == 127)) || die 1 "the image runs $program: status $status: $output"
    done
}

# Where no worker listens.
check_failing_health_check() {
    local status=0 output
    output=$(docker run --rm "$image" healthcheck 2>&1) || status=$?
    [[ $status == 1 && $output == *"cannot ask http://"* ]] ||
        die 1 "the health check of nothing: status $status: $output"
}

# Starts a worker that reaches no other server; it serves its probes all the same.
serve() { # NAME OPTION…
    docker run --detach --name "$project-$1" --read-only --cap-drop ALL "${@:2}" --env HANDOFF_IDV_API_KEY=none \
        --env HANDOFF_IDV_URL=http://127.0.0.1:1 --env HANDOFF_LOG_FORMAT=json "$image" >/dev/null
}

# Asks a worker from inside, by the image's own health check, and from another container, as a kubelet does.
check_serving() { # NAME NETWORK ADDRESS LISTENING
    local name=$project-$1 deadline=$((SECONDS + 60)) state
    until state=$(docker inspect --format '{{.State.Health.Status}}' "$name") && [[ $state == healthy ]]; do
        ((SECONDS < deadline)) || die 1 "$1: the worker is $state: $(docker logs "$name" 2>&1 | tail -n 5)"
        sleep 0.2
    done
    docker exec "$name" /usr/local/bin/handoff healthcheck >/dev/null || die 1 "$1: the health check fails inside"
    [[ $(docker logs "$name" 2>&1) == *"\"addr\":\"$4\""* ]] || die 1 "$1: the worker does not listen on $4"
    docker run --rm --network "$2" "$image" healthcheck --http-addr "$3:9464" >/dev/null ||
        die 1 "$1: the probe at $3 fails from outside"
}

address() { # NAME FIELD
    docker inspect --format "{{range .NetworkSettings.Networks}}{{.$2}}{{end}}" "$project-$1"
}

# Hosts with one family of addresses only. Docker cannot start a kernel without IPv6: this profile refuses what such a
# kernel refuses, in the same way (EAFNOSUPPORT).
check_address_families() {
    local v4=$project-v4 v6=$project-v6 name no_ipv6
    local off=(--sysctl net.ipv6.conf.all.disable_ipv6=1 --sysctl net.ipv6.conf.default.disable_ipv6=1)
    no_ipv6=$(mktemp)
    cat >"$no_ipv6" <<'PROFILE'
{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
  "args": [{"index": 0, "value": 10, "op": "SCMP_CMP_EQ"}]}]}
PROFILE
    docker network create "$v4" >/dev/null
    docker network create --ipv6 --ipv4=false "$v6" >/dev/null ||
        die "$EX_UNAVAILABLE" "Docker 28 or later is needed, for a network without IPv4"
    serve ipv4-only --network "$v4" "${off[@]}"
    serve kernel-without-ipv6 --network "$v4" "${off[@]}" --security-opt "seccomp=$no_ipv6"
    serve bindv6only --network "$v4" --sysctl net.ipv6.bindv6only=1
    serve ipv6-only --network "$v6"
    [[ -z $(address ipv6-only IPAddress) && -z $(address ipv4-only GlobalIPv6Address) ]] ||
        die 1 "the containers have addresses of both families"
    check_serving ipv4-only "$v4" "$(address ipv4-only IPAddress)" "[::]:9464"
    check_serving kernel-without-ipv6 "$v4" "$(address kernel-without-ipv6 IPAddress)" "0.0.0.0:9464"
    check_serving bindv6only "$v4" "$(address bindv6only IPAddress)" "[::]:9464"
    check_serving ipv6-only "$v6" "[$(address ipv6-only GlobalIPv6Address)]" "[::]:9464"
    for name in ipv4-only kernel-without-ipv6 bindv6only ipv6-only; do
        docker stop --timeout 10 "$project-$name" >/dev/null
        expect "status of the worker $name" 0 "$(docker inspect --format '{{.State.ExitCode}}' "$project-$name")"
    done
    rm -f "$no_ipv6"
    say "probes are served with IPv4 alone, with IPv6 alone, and on a kernel without IPv6"
}

# Removes what the checks have made, in any state.
remove_containers() {
    docker ps --all --quiet --filter "name=^$project-" | xargs -r docker rm --force --volumes >/dev/null 2>&1 || true
    docker network ls --quiet --filter "name=^$project-v[46]" | xargs -r docker network rm >/dev/null 2>&1 || true
}
