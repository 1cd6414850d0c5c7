#!/bin/sh
# Install redis-server, PostgreSQL and Chromium for the tests with apt, where they are missing.
# No system daemon is started and no PostgreSQL cluster made: the tests start private servers.
# What cannot be installed is named in one line, and the tests that need it say so too.
set -u

has_postgresql() {
    command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
}
has_chromium() { command -v chromium >/dev/null 2>&1; }
has_redis() { command -v redis-server >/dev/null 2>&1; }

missing() {
    has_redis || echo redis-server
    has_postgresql || echo postgresql
    has_chromium || echo chromium
}

give_up() {
    echo "servers: $(missing | tr '\n' ' ')not installed ($1); tests that need them are skipped"
    exit 0
}

[ -n "$(missing)" ] || exit 0
command -v apt-get >/dev/null 2>&1 || give_up "no apt-get here"
as_root=
if [ "$(id -u)" != 0 ]; then
    as_root=sudo
    [ -t 0 ] || as_root="sudo -n"  # nobody is there to type a password
    $as_root true 2>/dev/null || give_up "neither root nor sudo"
fi

log=$(mktemp)
mark="# no daemons while the tests' servers are installed"
policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.conf

# Both are put back as they were, whatever happens in between.
restore() {
    if $as_root test -e $policy.tuner; then $as_root mv $policy.tuner $policy
    else $as_root rm -f $policy; fi
    if $as_root test -e $clusters.tuner; then $as_root mv $clusters.tuner $clusters; fi
    rm -f "$log"
}
trap restore EXIT
trap 'exit 130' INT TERM HUP

# A file of ours that is still there is left over from a run that was killed.
if [ -e $policy ] && ! grep -q "$mark" $policy; then $as_root cp -p $policy $policy.tuner; fi
printf '#!/bin/sh\n%s\nexit 101\n' "$mark" | $as_root tee $policy >/dev/null
$as_root chmod 755 $policy

apt_get() {
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1
}
install() { apt_get install --yes --no-install-recommends "$@"; }

install_postgresql() {
    install postgresql-common || return  # brings the file that says whether to make a cluster
    $as_root test -e $clusters.tuner || $as_root cp -p $clusters $clusters.tuner
    printf 'create_main_cluster = false\n' | $as_root tee -a $clusters >/dev/null
    install postgresql
}

echo "servers: installing $(missing | tr '\n' ' ')with apt"
apt_get update
has_redis || install redis-server
has_postgresql || install_postgresql
has_chromium || install chromium
[ -z "$(missing)" ] || give_up "apt-get: $(grep -m 1 '^E: ' "$log" || echo 'see its own messages')"
