# shellcheck shell=bash
# nats-server with JetStream, for tools/brokers. ANYWIRE_NATS_PORT (default 14222) is its port; 4000 more is its monitoring's.
# ANYWIRE_TEST_NATS_SERVER is another server than the installed one.

nats_version=2.15.2

nats_port() { echo "${ANYWIRE_NATS_PORT:-14222}"; }
nats_url() { echo "nats://127.0.0.1:$(nats_port)"; }

nats_server() {
    local server
    for server in "${ANYWIRE_TEST_NATS_SERVER:-}" "$(home nats)/$nats_version/nats-server" /usr/sbin/nats-server; do
        if [[ -x $server ]]; then
            echo "$server"
            return
        fi
    done
    return 1
}

# The Go command fetches a newer one through the module proxy, if the server needs it. It can do that since 1.21.
nats_has_go() {
    local minor
    minor=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    ((${minor:-0} >= 21))
}

nats_install() {
    if ! nats_has_go && nats_has_apt && (($(nats_minor_of_apt) >= 21)); then
        apt-get install -qq --no-install-recommends golang-go
    fi
    if nats_has_go; then
        echo "nats: building nats-server $nats_version, which takes a minute"
        GOTOOLCHAIN=auto GOFLAGS='' GOBIN="$(home nats)/$nats_version" \
            go install "github.com/nats-io/nats-server/v2@v$nats_version"
    elif nats_has_apt; then
        apt-get install -qq --no-install-recommends nats-server
        complain "nats: the server is the distribution's, $(/usr/sbin/nats-server --version); what is tested is $nats_version, which takes Go 1.21 or newer"
    else
        die "nats: Go 1.21 or newer is needed to build its server; install that, or as root the package nats-server, and come again"
    fi
}

nats_has_apt() { ((EUID == 0)) && command -v apt-get >/dev/null && apt-get update -qq; }

# The minor version of the Go that the distribution has.
nats_minor_of_apt() {
    local minor
    minor=$(LC_ALL=C apt-cache policy golang-go | sed -n 's/^ *Candidate: .*:1\.\([0-9]*\).*/\1/p')
    echo "${minor:-0}"
}

nats_run() {
    # shellcheck disable=SC2154 # `tools` is of the script that reads this one.
    exec "$(nats_server)" --config "$tools/brokers.d/nats.conf" --store_dir "$(data nats)" \
        --addr 127.0.0.1 --port "$(nats_port)" --http_port "$(($(nats_port) + 4000))"
}

# A server greets, and says what it can do.
nats_ready() {
    local greeting
    {
        exec 3<>"/dev/tcp/127.0.0.1/$(nats_port)" && read -r -t 2 greeting <&3
        exec 3>&-
    } 2>/dev/null
    [[ ${greeting:-} == INFO*'"jetstream":true'* ]]
}

nats_env() {
    printf 'export ANYWIRE_TEST_NATS_URL=%q\n' "$(nats_url)"
    printf 'export ANYWIRE_TEST_NATS_SERVER=%q\n' "$(nats_server)"
}
