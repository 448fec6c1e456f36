# shellcheck shell=bash
# RabbitMQ with its usual plugins off, for tools/brokers. ANYWIRE_RABBITMQ_PORT (default 14672) is its port;
# ANYWIRE_RABBITMQ_SERIES=3 makes it the old series that is still widely run, instead of 4.
# ANYWIRE_TEST_RABBITMQ_TREE is another Debian than the installed one.
#
# It lies in a Debian of its own: its packages go with one Erlang and one user, and start what they install. Only root can make
# such a tree and go into it; else the server is the machine's own, where there is one.

rabbitmq_series() { echo "${ANYWIRE_RABBITMQ_SERIES:-4}"; }

rabbitmq_version=4.0.5

# The Debian that has a series: 4.0.5, or 3.10.8.
rabbitmq_suite() {
    case $(rabbitmq_series) in
    3) echo bookworm ;;
    4) echo trixie ;;
    *) die "rabbitmq: ANYWIRE_RABBITMQ_SERIES is 3 or 4, not \`$(rabbitmq_series)\`" ;;
    esac
}

rabbitmq_port() { echo "${ANYWIRE_RABBITMQ_PORT:-14672}"; }
rabbitmq_url() { echo "amqp://guest:guest@127.0.0.1:$(rabbitmq_port)"; }

# The root of the Debian that it lies in.
rabbitmq_tree() {
    local tree
    tree=$(home rabbitmq)/$(rabbitmq_series)
    if [[ -n ${ANYWIRE_TEST_RABBITMQ_TREE:-} && -z ${ANYWIRE_RABBITMQ_SERIES:-} ]]; then
        echo "$ANYWIRE_TEST_RABBITMQ_TREE"
    elif ((EUID == 0)) && [[ -e $tree/complete ]]; then
        echo "$tree"
    elif [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]]; then
        echo /
    else
        return 1
    fi
}

# shellcheck disable=SC2154 # `tools` is of the script that reads this one.
rabbitmq_server() { rabbitmq_tree >/dev/null && echo "$tools/brokers.d/rabbitmq-server"; }

rabbitmq_install() {
    local tree suite mirror
    suite=$(rabbitmq_suite)
    ((EUID == 0)) && command -v apt-get >/dev/null ||
        die "rabbitmq: install it as root, on a Debian, or install a rabbitmq-server of your own, and come again"
    apt-get update -qq
    mirror=$(rabbitmq_mirror)
    if [[ -z $mirror ]] || ! rabbitmq_can_mount; then
        rabbitmq_install_here
        return
    fi
    command -v debootstrap >/dev/null && command -v gpgv >/dev/null ||
        apt-get install -qq --no-install-recommends debootstrap debian-archive-keyring gpgv
    echo "rabbitmq: unpacking a Debian $suite with rabbitmq-server, which takes a minute"
    tree=$(home rabbitmq)/$(rabbitmq_series)
    rm -rf --one-file-system "$tree"
    debootstrap --variant=minbase --include=rabbitmq-server "$suite" "$tree" "$mirror" >"$tree.log" 2>&1 || {
        tail -n 20 "$tree.log" >&2
        die "rabbitmq: debootstrap failed; the end of its log is above"
    }
    rm -rf "$tree"/var/cache/apt/archives "$tree"/var/lib/apt/lists
    echo '127.0.0.1 localhost' >"$tree/etc/hosts"
    touch "$tree/complete"
}

# Where this machine gets its own Debian packages, if it is one.
rabbitmq_mirror() {
    apt-get indextargets --format '$(REPO_URI) $(CODENAME)' "Created-By: Packages" "Component: main" "Origin: Debian" "Label: Debian" |
        sed -n 's/^\([^ ]*\) [a-z]*$/\1/p' | head -n 1
}

# Some containers forbid it even root.
rabbitmq_can_mount() { unshare --mount --pid --fork --kill-child mount -t tmpfs none /mnt 2>/dev/null; }

# The distribution's package starts a server on the usual port, unless it is told not to.
rabbitmq_install_here() {
    local policy=/usr/sbin/policy-rc.d ours=
    if [[ ! -e $policy ]]; then
        ours=1
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get install -qq --no-install-recommends rabbitmq-server
    [[ -z $ours ]] || rm "$policy"
    complain "rabbitmq: the server is the distribution's; what is tested is $rabbitmq_version"
}

rabbitmq_run() {
    export ANYWIRE_TEST_RABBITMQ_TREE
    ANYWIRE_TEST_RABBITMQ_TREE=$(rabbitmq_tree)
    exec "$(rabbitmq_server)" "$(rabbitmq_port)" "$(data rabbitmq)"
}

# A server answers the greeting of AMQP 0.9.1 with the first byte of a frame.
rabbitmq_ready() {
    local answer
    {
        exec 3<>"/dev/tcp/127.0.0.1/$(rabbitmq_port)" && printf 'AMQP\0\0\11\1' >&3 && read -r -t 2 -N 1 answer <&3
        exec 3>&-
    } 2>/dev/null
    [[ ${answer:-} == $'\1' ]]
}

rabbitmq_env() {
    printf 'export ANYWIRE_TEST_RABBITMQ_URL=%q\n' "$(rabbitmq_url)"
    printf 'export ANYWIRE_TEST_RABBITMQ_SERVER=%q\n' "$(rabbitmq_server)"
    printf 'export ANYWIRE_TEST_RABBITMQ_CTL=%q\n' "$tools/brokers.d/rabbitmq-ctl"
    printf 'export ANYWIRE_TEST_RABBITMQ_TREE=%q\n' "$(rabbitmq_tree)"
}
