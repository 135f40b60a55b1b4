# shellcheck shell=bash
# What check-snippets installs and runs. It installs once, into the cache, and then needs no network.

# shellcheck source=scripts/lib.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/handoff/snippets
java_libraries=/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar:/usr/share/java/slf4j-nop.jar
java_libraries+=:/usr/share/java/jackson-core.jar:/usr/share/java/jackson-annotations.jar:/usr/share/java/jackson-databind.jar

# Writes the programs in Markdown files into a folder. A comment in the first line of a code block names its file.
extract_programs() { # FOLDER FILE…
    awk -v folder="$1" '
        /^```/ { file = ""; block = !block; first = block; next }
        block && first { first = 0; if ($0 ~ /^(#|\/\/) [A-Za-z_]+\.(py|mjs|java|go|sh):/) file = folder "/" substr($2, 1, length($2) - 1) }
        block && file != "" { print > file }
    ' "${@:2}"
}

# Puts a python3 that has pika on the PATH.
install_pika() {
    local venv=$cache/venv
    "$venv/bin/python3" -c 'import pika' 2>/dev/null || {
        create_venv || { can_install && install_packages python3 python3-venv && create_venv; } ||
            die "$EX_UNAVAILABLE" "no python3 can create a virtual environment; install the package python3-venv: $(tail -1 "$cache/venv.log")"
        "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check pika >"$cache/pip.log" 2>&1 ||
            die "$EX_UNAVAILABLE" "pip could not install pika: $(tail -1 "$cache/pip.log")"
    }
    PATH=$venv/bin:$PATH
}

# The first python3 on the PATH may be any: a version manager's shim without a version, one without pika where
# Debian's has it, or Debian's without the package python3-venv.
create_venv() {
    local python
    for python in python3 /usr/bin/python3; do
        rm -rf "$cache/venv"
        ! "$python" -m venv "$cache/venv" >"$cache/venv.log" 2>&1 || return 0
    done
    return 1
}

# Puts a node on the PATH, and amqplib into the folder of the programs.
install_amqplib() { # FOLDER
    find_node || { can_install && install_packages nodejs npm && find_node; } ||
        die "$EX_UNAVAILABLE" "no node and npm work together; install the packages nodejs and npm: $(tail -1 "$cache/node.log")"
    PATH=$node_bin:$PATH
    [[ -d $cache/node/node_modules/amqplib ]] || {
        mkdir -p "$cache/node"
        (cd "$cache/node" && npm install --silent --no-fund --no-audit --prefix . amqplib >"$cache/npm.log" 2>&1) ||
            die "$EX_UNAVAILABLE" "npm could not install amqplib: $(tail -1 "$cache/npm.log")"
    }
    ln -s "$cache/node/node_modules" "$1/node_modules"
}

# Finds a folder whose node and npm work together. npm runs the first node on the PATH.
find_node() {
    for node_bin in "$(dirname "$(command -v node || echo /usr/bin/node)")" /usr/bin; do
        ! PATH=$node_bin:$PATH npm --version >"$cache/node.log" 2>&1 || return 0
    done
    return 1
}

# Returns whether there is a JDK with the libraries, or it could install them.
install_java() {
    have_java ||
        { can_install && install_packages default-jdk-headless librabbitmq-client-java libjackson2-databind-java && have_java; }
}

# Compiles the Java programs in a folder.
build_java() { # FOLDER
    javac -cp "$java_libraries" -d "$1/classes" "$1"/*.java
}

have_java() { have javac && [[ -e /usr/share/java/amqp-client.jar && -e /usr/share/java/jackson-databind.jar ]]; }

run_java() { # FOLDER CLASS ARGUMENT…
    java -cp "$java_libraries:$1/classes" "${@:2}"
}

# Returns whether there is Go with the library, or it could install them.
install_go() {
    have_go || { can_install && install_packages golang-go golang-github-rabbitmq-amqp091-go-dev && have_go; }
}

# Compiles the Go programs in a folder.
build_go() { # FOLDER
    local program
    for program in consume publish; do
        # Debian packages Go libraries as source below a GOPATH.
        GO111MODULE=off GOPATH=/usr/share/gocode GOFLAGS='' GOCACHE=$cache/go \
            go build -o "$1/go-$program" "$1/$program.go"
    done
}

have_go() { have go && [[ -d /usr/share/gocode/src/github.com/rabbitmq/amqp091-go ]]; }
