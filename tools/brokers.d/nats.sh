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
    if nats_has_go; then
        echo "nats: building nats-server $nats_version, which takes a minute"
        GOTOOLCHAIN=auto GOFLAGS='' GOBIN="$(home nats)/$nats_version" \
            go install "github.com/nats-io/nats-server/v2@v$nats_version"
    elif ((EUID == 0)) && command -v apt-get >/dev/null; then
        apt-get update -qq
        apt-get install -qq --no-install-recommends nats-server
        echo "nats: $(/usr/sbin/nats-server --version) from the distribution; tested is $nats_version, which takes Go 1.21 or newer"
    else
        die "nats needs Go 1.21 or newer, which builds its server; install it, or the package nats-server (older) as root, and come again"
    fi
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
