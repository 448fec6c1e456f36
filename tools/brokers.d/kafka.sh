# shellcheck shell=bash
# Apache Kafka, one node, for tools/brokers. ANYWIRE_KAFKA_PORT (default 14092) is its port.
# ANYWIRE_TEST_KAFKA_JARS is another folder of jars than the installed one.

kafka_version=4.3.1

kafka_port() { echo "${ANYWIRE_KAFKA_PORT:-14092}"; }
kafka_url() { echo "kafka://127.0.0.1:$(kafka_port)"; }
kafka_jars() { echo "${ANYWIRE_TEST_KAFKA_JARS:-$(home kafka)/$kafka_version}"; }

# shellcheck disable=SC2154 # `tools` is of the script that reads this one.
kafka_server() { [[ -e $(kafka_jars)/complete ]] && kafka_has_java && echo "$tools/brokers.d/kafka-server"; }

kafka_has_java() {
    local version
    version=$(java -version 2>&1 | sed -n '1s/.* version "\([0-9]*\).*/\1/p')
    ((${version:-0} >= 17))
}

kafka_install() {
    local jars missing=()
    kafka_has_java || missing+=(default-jre-headless)
    command -v mvn >/dev/null || missing+=(maven)
    if ((${#missing[@]})); then
        ((EUID == 0)) && command -v apt-get >/dev/null ||
            die "kafka: Java 17 or newer and Maven are needed to get its server; install those, or come again as root on a Debian"
        apt-get update -qq
        apt-get install -qq --no-install-recommends "${missing[@]}"
    fi
    kafka_has_java || die "kafka: this distribution's Java is older than 17; install a newer one, and come again"
    jars=$(home kafka)/$kafka_version
    rm -rf "$jars"
    mvn --quiet --batch-mode --file "$tools/brokers.d/kafka-pom.xml" -Dkafka.version="$kafka_version" \
        dependency:copy-dependencies -DoutputDirectory="$jars" -DincludeScope=runtime
    kafka_archive "$jars"
    touch "$jars/complete"
}

# Runs the server once to archive its classes, as it ends. Without the archive it only starts more slowly.
kafka_archive() {
    local jars=$1 folder pid
    folder=$(mktemp -d)
    set -m
    ANYWIRE_TEST_KAFKA_JARS=$jars ANYWIRE_TEST_KAFKA_ARCHIVE=$jars/server.jsa \
        "$tools/brokers.d/kafka-server" "$("$tools/brokers.d/free-port" 15092)" "$folder/data" >"$folder/log" 2>&1 </dev/null 9>&- &
    pid=$!
    set +m
    within "$starts_within" grep -qs 'Kafka Server started' "$folder/log" || complain "kafka: its classes are not archived; it starts more slowly"
    kill -s TERM -- "-$pid" 2>/dev/null || true
    wait "$pid" || true
    rm -rf "$folder"
}

kafka_run() {
    export ANYWIRE_TEST_KAFKA_JARS
    ANYWIRE_TEST_KAFKA_JARS=$(kafka_jars)
    exec "$(kafka_server)" "$(kafka_port)" "$(data kafka)"
}

# A server that says that it started, and answers which versions of requests it takes (ApiVersions). Of the answer, some byte of
# its length is not zero, which bash would not read.
kafka_ready() {
    local answer LC_ALL=C
    grep -q 'Kafka Server started' "$(log kafka)" 2>/dev/null || return 1
    {
        exec 3<>"/dev/tcp/127.0.0.1/$(kafka_port)" && printf '\0\0\0\12\0\22\0\0\0\0\0\1\377\377' >&3 && read -r -t 2 -N 1 answer <&3
        exec 3>&-
    } 2>/dev/null
    [[ -n ${answer:-} ]]
}

kafka_env() {
    printf 'export ANYWIRE_TEST_KAFKA_URL=%q\n' "$(kafka_url)"
    printf 'export ANYWIRE_TEST_KAFKA_SERVER=%q\n' "$(kafka_server)"
    printf 'export ANYWIRE_TEST_KAFKA_TOOL=%q\n' "$tools/brokers.d/kafka-tool"
    printf 'export ANYWIRE_TEST_KAFKA_JARS=%q\n' "$(kafka_jars)"
}
