#!/bin/sh
# labhost-service: how an instance's services are controlled. The interface is described in labhost's
# host/src/provider/local/guest.rs; this is the implementation for systemd. Written by labhost; needs systemd,
# python3 (which cloud-init brings) for JSON, and root or sudo without a password.
#
# A service NAME is the unit labhost-NAME. Its program runs as a user of its own, in a directory of its own
# (/var/lib/labhost/NAME) where everything in the login's home appears as links, so that it can read what was
# uploaded and write beside it, but change nothing of the login's.
set -eu
umask 022

LOGIN=@LOGIN@
HOME_DIR=@HOME@
DIR=/etc/labhost
UNITS=/etc/systemd/system

USAGE="usage: labhost-service apply|start|stop|restart|reload|status|remove|logs NAME [-n LINES] [-f], host-key, expires AT, guard"

refuse() { # refuse EXIT-STATUS TEXT
    printf 'labhost-service: %s\n' "$2" >&2
    exit "$1"
}

as_root() {
    [ "$(id -u)" = 0 ] || exec sudo -n "$0" "$@"
}

check_name() {
    case $1 in
    '' | -* | *[!a-z0-9-]* | ?????????????????????????????????????????*)
        refuse 2 "\"$1\" is not a name; use 1 to 40 of a-z, 0-9 and -" ;;
    esac
}

unit() { printf 'labhost-%s.service' "$1"; }

known() {
    [ -f "$DIR/$1.json" ] || refuse 1 "there is no service $1"
}

# Compares the definition on standard input with the one in force, and writes the new files beside the old ones.
# Prints `same`, `reload`, `handover` or `restart`, and the two lines that the unit needs. A hand-over is done by the
# running process, which starts its own command line again: it can only take up what lies in files.
digest() {
    python3 -c '
import json, os, re, shlex, sys
name, folder, work = sys.argv[1:4]
fields = {"exec": None, "env": {}, "restart": "always", "hash": "", "reload_hash": "", "stop_timeout": "10s",
          "handover": False}
def refuse(text):
    sys.exit("labhost-service: apply service %s: %s" % (name, text))
try:
    given = json.load(sys.stdin)
except ValueError as error:
    refuse("its definition is no JSON: %s" % error)
if not isinstance(given, dict):
    refuse("its definition is no JSON map")
unknown = set(given) - set(fields)
if unknown:
    refuse("its definition has unknown keys: %s" % ", ".join(sorted(unknown)))
new = dict(fields, **given)
if not isinstance(new["exec"], str) or not new["exec"].strip() or "\0" in new["exec"]:
    refuse("`exec` must be a command")
if new["restart"] not in ("always", "on-failure", "no"):
    refuse("`restart` is always, on-failure or no")
if not isinstance(new["handover"], bool):
    refuse("`handover` is true or false")
for key, value in new["env"].items():
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key) or not isinstance(value, str) or "\0" in value:
        refuse("`env` has a name or value that no environment can hold")
try:
    with open(os.path.join(folder, name + ".json")) as file:
        old = json.load(file)
except (OSError, ValueError):
    old = None
if old == new:
    change = "same"
elif old is not None and dict(old, reload_hash=new["reload_hash"]) == new:
    change = "reload"
elif old is not None and new["handover"] and dict(old, hash=new["hash"], reload_hash=new["reload_hash"]) == new:
    change = "handover"
else:
    change = "restart"
def write(ending, text):
    with open(os.path.join(folder, name + ending), "w") as file:
        file.write(text)
write(".json.new", json.dumps(new))
lines = ["#!/bin/sh", "export HOME=" + shlex.quote(work)]
lines += ["export %s=%s" % (key, shlex.quote(value)) for key, value in sorted(new["env"].items())]
write(".sh.new", "\n".join(lines + ["exec " + new["exec"], ""]))
timeout = str(new["stop_timeout"])
print(change)
print(new["restart"])
print(timeout if re.fullmatch("([0-9.]+(us|ms|s|m|h)?)+", timeout) else "10s")
' "$1" "$DIR" "/var/lib/labhost/$1"
}

write_unit() { # write_unit NAME RESTART STOP-TIMEOUT
    cat >"$DIR/$1.unit.new" <<UNIT
[Unit]
Description=labhost service $1
After=network-online.target
Wants=network-online.target
# Five failures within ten seconds are given up.
StartLimitIntervalSec=10
StartLimitBurst=5

[Service]
Type=exec
DynamicUser=yes
SupplementaryGroups=$LOGIN
StateDirectory=labhost/$1
WorkingDirectory=/var/lib/labhost/$1
ExecStartPre=+/usr/local/bin/labhost-service link $1
ExecStart=/bin/sh $DIR/$1.sh
ExecReload=/bin/kill -HUP \$MAINPID
# A process that hands over names its successor.
NotifyAccess=main
Restart=$2
RestartSec=200ms
# Not `mixed`: systemd would not wait for a successor, whose parent it is not, and kill it at once.
KillMode=control-group
TimeoutStopSec=$3
LimitNOFILE=65536
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX

[Install]
WantedBy=multi-user.target
UNIT
}

apply() {
    mkdir -p "$DIR"
    chmod 755 "$DIR"
    answer=$(digest "$1") || exit 1
    # shellcheck disable=SC2086 # three words
    set -- "$1" $answer
    write_unit "$1" "$3" "$4"
    chmod 644 "$DIR/$1.unit.new"
    change=$2
    cmp -s "$DIR/$1.unit.new" "$UNITS/$(unit "$1")" || change=restart
    mv "$DIR/$1.sh.new" "$DIR/$1.sh"
    mv "$DIR/$1.unit.new" "$UNITS/$(unit "$1")"
    case $(property "$1" ActiveState) in
    active | activating | reloading) ;;
    *) change=restart ;;
    esac
    case $change in
    restart)
        systemctl daemon-reload
        systemctl reset-failed "$(unit "$1")" 2>/dev/null || true
        systemctl enable --quiet "$(unit "$1")"
        systemctl restart "$(unit "$1")"
        ;;
    reload)
        link "$1"
        systemctl reload "$(unit "$1")"
        ;;
    handover)
        link "$1"
        hand_over "$1"
        ;;
    esac
    # Only what has been carried out is remembered, so that an interrupted apply is done again.
    mv "$DIR/$1.json.new" "$DIR/$1.json"
    [ "$change" = same ] && changed=false || changed=true
    printf '{"changed":%s,"service":%s}\n' "$changed" "$(status "$1")"
}

# SIGUSR2 makes the main process start its successor, and systemd hears from it when that has taken over. A successor
# that ends before leaves the main process as it was.
hand_over() {
    before=$(property "$1" MainPID)
    systemctl kill --signal=USR2 --kill-who=main "$(unit "$1")"
    tenths=0
    seen=
    while [ "$(property "$1" MainPID)" = "$before" ]; do
        starting=$(cat /proc/"$before"/task/*/children 2>/dev/null) || starting=
        if [ -n "$starting" ]; then seen=yes; fi
        # It appears at once, and takes over within half a minute.
        if { [ -z "$starting" ] && { [ -n "$seen" ] || [ "$tenths" -ge 20 ]; }; } || [ "$tenths" -ge 400 ]; then
            # It may have taken over since.
            sleep 0.2
            [ "$(property "$1" MainPID)" != "$before" ] ||
                refuse 1 "service $1 goes on as it was: its successor did not take over; its log says why"
        fi
        sleep 0.1
        tenths=$((tenths + 1))
    done
}

# A running service that can hand over loses nothing when it is restarted.
restart() {
    if grep -q '"handover": true' "$DIR/$1.json" && [ "$(property "$1" ActiveState)" = active ]; then
        hand_over "$1"
    else
        systemctl restart "$(unit "$1")"
    fi
}

# Makes the login's files appear in the service's directory; links to what is gone are removed.
link() {
    work=/var/lib/labhost/$1
    [ -d "$work" ] || return 0
    for entry in "$work"/*; do
        if [ -L "$entry" ] && [ ! -e "$entry" ]; then rm -f "$entry"; fi
    done
    for file in "$HOME_DIR"/*; do
        target=$work/${file##*/}
        if [ -e "$file" ] && { [ -L "$target" ] || [ ! -e "$target" ]; }; then ln -sfn "$file" "$target"; fi
    done
}

property() {
    systemctl show --property="$2" --value "$(unit "$1")"
}

# Times are asked for in UTC, because systemd 247 does not know --timestamp=unix.
status() {
    TZ=UTC systemctl show \
        --property=ActiveState,SubState,MainPID,ExecMainStatus,ExecMainCode,NRestarts,StateChangeTimestamp \
        "$(unit "$1")" | python3 -c '
import calendar, json, sys, time
name, path = sys.argv[1:3]
shown = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin if "=" in line)
states = {"active": "running", "reloading": "running", "activating": "starting", "failed": "failed"}
def number(key):
    digits = "".join(c for c in shown.get(key, "") if c.isdigit())
    return int(digits) if digits else 0
try: # Tue 2026-11-24 07:43:09 UTC
    since = calendar.timegm(time.strptime(shown["StateChangeTimestamp"][4:23], "%Y-%m-%d %H:%M:%S"))
except (KeyError, ValueError):
    since = 0
try:
    with open(path) as file:
        digest = json.load(file)["hash"]
except (OSError, ValueError, KeyError):
    digest = ""
ended = number("ExecMainStatus") + (128 if shown.get("ExecMainCode") in ("2", "3", "killed", "dumped") else 0)
pid = number("MainPID") or None
print(json.dumps({
    "name": name, "state": states.get(shown.get("ActiveState"), "stopped"), "pid": pid,
    "exit_status": ended if shown.get("ExecMainCode", "0") not in ("0", "") else None,
    "restarts": number("NRestarts"), "since_s": since, "hash": digest,
}))' "$1" "$DIR/$1.json"
}

all_statuses() {
    separator=
    printf '['
    for file in "$DIR"/*.json; do
        [ -e "$file" ] || continue
        name=${file##*/}
        printf '%s%s' "$separator" "$(status "${name%.json}")"
        separator=,
    done
    printf ']\n'
}

remove() {
    systemctl disable --quiet --now "$(unit "$1")" 2>/dev/null || true
    rm -f "$UNITS/$(unit "$1")" "$DIR/$1.json" "$DIR/$1.sh" "$DIR/$1".*.new
    rm -rf "/var/lib/private/labhost/$1" "/var/lib/labhost/$1"
    systemctl daemon-reload
    printf '{"removed":"%s"}\n' "$1"
}

logs() {
    name=$1
    shift
    lines=100
    follow=
    while [ $# -gt 0 ]; do
        case $1 in
        -f) follow=--follow ;;
        -n)
            case ${2:-} in '' | *[!0-9]*) refuse 2 "-n takes a number of lines" ;; esac
            lines=$2
            shift
            ;;
        *) refuse 2 "there is no option \"$1\"; $USAGE" ;;
        esac
        shift
    done
    # shellcheck disable=SC2086 # nothing or one word
    exec journalctl --unit="$(unit "$name")" --lines="$lines" --output=cat --no-pager --quiet $follow
}

# Connections that stand are kept: each has a process of its own.
replace_host_key() {
    new=/etc/ssh/labhost_host_key.new
    (umask 077 && cat >$new)
    ssh-keygen -y -P '' -f $new >$new.pub || refuse 1 "host-key: standard input holds no private key"
    mv $new.pub /etc/ssh/ssh_host_ed25519_key.pub
    mv $new /etc/ssh/ssh_host_ed25519_key
    systemctl reload ssh 2>/dev/null || systemctl reload sshd
    printf '{}\n'
}

expires() {
    case $1 in '' | *[!0-9]*) refuse 2 "\"$1\" is no time in seconds since the epoch" ;; esac
    mkdir -p "$DIR"
    printf '%s\n' "$1" >"$DIR/expires.new"
    mv "$DIR/expires.new" "$DIR/expires"
    printf '{}\n'
}

# Fails unless this instance ends by itself. cloud-init starts the timer last of all, so it may have to be started here.
guard() {
    timer=labhost-ttl.timer
    if ! systemctl is-active --quiet $timer; then
        systemctl daemon-reload && systemctl enable --quiet --now $timer || true
    fi
    systemctl is-active --quiet $timer || refuse 1 "guard: $timer is not active"
    [ -x /usr/local/sbin/labhost-ttl ] || refuse 1 "guard: /usr/local/sbin/labhost-ttl is not there"
    at=$(cat "$DIR/expires") || refuse 1 "guard: there is no deadline"
    case $at in '' | *[!0-9]*) refuse 1 "guard: \"$at\" is no deadline" ;; esac
    printf '{"expires_at_s":%s}\n' "$at"
}

verb=${1:-}
case $verb in
apply | start | stop | restart | reload | remove | link | logs)
    [ $# -ge 2 ] || refuse 2 "$USAGE"
    check_name "$2"
    [ $# = 2 ] || [ "$verb" = logs ] || refuse 2 "$USAGE"
    as_root "$@"
    ;;
status)
    [ $# -le 2 ] || refuse 2 "$USAGE"
    [ $# = 1 ] || check_name "$2"
    as_root "$@"
    ;;
host-key | guard) [ $# = 1 ] || refuse 2 "$USAGE"; as_root "$@" ;;
expires) [ $# = 2 ] || refuse 2 "$USAGE"; as_root "$@" ;;
*) refuse 2 "$USAGE" ;;
esac

case $verb in
apply) apply "$2" ;;
start | stop | restart | reload)
    known "$2"
    systemctl reset-failed "$(unit "$2")" 2>/dev/null || true
    if [ "$verb" = restart ]; then restart "$2"; else systemctl "$verb" "$(unit "$2")"; fi
    status "$2"
    ;;
status)
    if [ $# = 1 ]; then all_statuses; else known "$2"; status "$2"; fi
    ;;
link) link "$2" ;;
remove) remove "$2" ;;
logs) known "$2"; shift; logs "$@" ;;
host-key) replace_host_key ;;
expires) expires "$2" ;;
guard) guard ;;
esac
