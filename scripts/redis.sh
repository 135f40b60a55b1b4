# shellcheck shell=bash disable=SC2154  # shared variables
# Shared by redis-cluster and redis-sentinels, which set `dir` to the folder of all their nodes.

# Prints the answer of the server on PORT. Sentinels close no connection on QUIT.
ask() { # PORT COMMAND…
    local line limit=5
    {
        exec 3<>"/dev/tcp/127.0.0.1/$1" || return
        printf '%s\r\n' "${*:2}" >&3
        while IFS= read -r -t "$limit" -u 3 line; do
            echo "${line%$'\r'}"
            limit=0.05
        done
        exec 3>&-
    } 2>/dev/null
}

# Whether the answer of the server on PORT to COMMAND has this LINE.
has_line() { # PORT LINE COMMAND…
    ask "$1" "${@:3}" | grep -qx "$2"
}

# Waits until COMMAND succeeds, for at most 30 s.
poll() { # MESSAGE COMMAND…
    local deadline=$((SECONDS + 30))
    until "${@:2}"; do
        ((SECONDS < deadline)) || die 1 "$1"
        sleep 0.05
    done
}

port_of() { # URL
    local port=${1##*:}
    echo "${port%%/*}"
}

# Prints the port that the server on PORT has for TLS, or PORT if it has none.
client_port() { # PORT
    local tls
    tls=$(ask "$1" CONFIG GET tls-port | sed -n 5p)
    if ((${tls:-0} == 0)); then echo "$1"; else echo "$tls"; fi
}

# Far from the ports that redis-node tries first.
tls_port=$((10000 + ($$ * 4 + 5000) % 9900))

# Starts a node of redis-node, with a free port for each TLS_PORT in its options, and prints its URL.
start_node() { # NODE OPTION…
    local option options=()
    for option in "${@:2}"; do
        while [[ $option == TLS_PORT ]]; do
            tls_port=$((tls_port + 1))
            [[ -n $(listeners "$tls_port") ]] || option=$tls_port
        done
        options+=("$option")
    done
    "$here/redis-node" start "$1" "${options[@]}"
}

destroy() { destroy_nodes "$dir"; }
