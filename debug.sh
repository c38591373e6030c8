#!/usr/bin/env bash
# The way in: builds, starts, watches and tests the orchestrator. Without a verb on a terminal it shows a menu.
set -euo pipefail

CALLED_FROM=$PWD
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd -- "$ROOT"

# A path from the caller's environment means what it meant where the caller stood.
absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$CALLED_FROM/$1" ;; esac }

# What stands in .env counts here as it does for compose: behind the environment.
from_env_file() {
    local name value
    [ -f "$ROOT/.env" ] || return 0
    for name in AIOS_COMMON AIOS_PROGRAMS AIOS_IMAGE AIOS_PROFILE AIOS_UID AIOS_GID DOCKER_SOCKET; do
        [ -z "${!name:-}" ] || continue
        value=$(sed -n "s/^$name=//p" "$ROOT/.env" | tail -n 1)
        value=${value#[\"\']}
        value=${value%[\"\']}
        # A path there means what it means to compose: from the file's folder on.
        case $name=$value in AIOS_COMMON=[!/]* | AIOS_PROGRAMS=[!/]*) value=$ROOT/${value#./} ;; esac
        [ -z "$value" ] || printf -v "$name" '%s' "$value"
    done
}
from_env_file

COMMON=$(absolute "${AIOS_COMMON:-$ROOT/Common}")
PROGRAMS=$(absolute "${AIOS_PROGRAMS:-$ROOT/Programs}")
TARGET=$(absolute "${CARGO_TARGET_DIR:-$ROOT/target}")
PROFILE=${AIOS_PROFILE:-quick}
BIN=$(absolute "${ORCHESTRATOR:-$TARGET/$PROFILE/orchestrator}")
export AIOS_COMMON=$COMMON AIOS_PROGRAMS=$PROGRAMS CARGO_TARGET_DIR=$TARGET
# What devices call this script, and the folders, in the lines that they print once they work.
export AIOS_STARTED_WITH=./debug.sh
# What was started from this checkout: one machine's matter, so never in the shared folder.
RUN=$ROOT/.run
IMAGE=${AIOS_IMAGE:-aios-orchestrator}
# tagged NAME TAG: the name with another tag; a port in the name is none.
tagged() { case ${1##*/} in *:*) printf '%s:%s\n' "${1%:*}" "$2" ;; *) printf '%s:%s\n' "$1" "$2" ;; esac; }
SLIM=$(tagged "$IMAGE" slim)
UP_SECONDS=${UP_SECONDS:-20}
DOWN_SECONDS=${DOWN_SECONDS:-20}

usage() {
    cat <<'END'
usage: ./debug.sh [VERB]

  check            look at this machine: tools, limits, folders, the container engine
  build            build the binary (3 min on two cores; AIOS_PROFILE=release: the one for packages, 7 min)
  selftest         run the binary's own self-test on the folder
  up [OPTION…]     start everything: with compose where a container engine answers (OPTIONs are those of compose up, such as
                   --scale worker=5), else as `up ID`; says which
  up ID            build and start one device of that id in the background, as a process of this machine
  up --native      the same, by its default id: DEVICE_ID or the host's name
  down [ID]        stop what was started here, or one device
  restart [ID]     down and up
  kill ID          end a device at once with SIGKILL, as a crash would
  status           one screen: devices, what runs, what waits and why
  logs [OPTION…]   follow the orchestrators' logs
  trigger [NAME]   drop an example trigger (default: hello) from examples/triggers
  state            show state.json and how many files lie where
  test             run every test (20 min on two cores, half of it building)
  test quick       without containers and long simulations (2 min 30 s, once built)
  checks           everything that must hold before a change is taken (.ci/run)
  bench            run the benchmark; `bench growth`: how it stays fast as everything grows
  clean [--yes] [--all]   delete what runs left in Common; --all: waiting triggers, archives and the state too

  image            build the image (the default target of the Dockerfile)
  slim             build both images as they are published (profile release, 9 min), and show their sizes
  base-images      make local stand-ins for the images that the Dockerfile builds on, where no registry can be reached (root)
  image-test       run the self-test in the image
  shell            a shell in the image, with the folders mounted as a device has them
  compose-logs [OPTION…]  what the containers print

  menu             choose from a list
  help             this text

environment: AIOS_COMMON, AIOS_PROGRAMS (folders), DEVICE_ID, DEVICE_TAGS, DEVICE_SLOTS,
  DEVICE_DEFAULT_MEMORY, DEVICE_DEFAULT_CPUS, DEVICE_DEFAULT_PIDS (passed to the device),
  CARGO_TARGET_DIR, ORCHESTRATOR (a binary to use instead of building one), AIOS_IMAGE (the image's name),
  AIOS_PROFILE (how to build: quick or release)
END
}

say() { printf '%s\n' "$*"; }
# fail WHAT HINT [CODE]
fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit "${3:-1}"
}
# For verbs that take no further words.
no_more() { [ $# -eq 0 ] || fail "what is '$1'?" "./debug.sh help" 2; }
whose() { id -un 2>/dev/null || true; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- tools -----------------------------------------------------------------------------------------------------------

rust_wanted() { sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' Cargo.toml; }
rust_found() { cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p'; }
# at_least FOUND WANTED
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# The cause and the remedy of a missing tool, as "found|hint"; nothing if it is there.
lacks() {
    case $1 in
        cargo)
            if ! have cargo; then
                printf 'no cargo in PATH|install Rust %s or newer with rustup\n' "$(rust_wanted)"
            elif ! at_least "$(rust_found)" "$(rust_wanted)"; then
                printf 'cargo %s, expected %s or newer|rustup update stable\n' "$(rust_found)" "$(rust_wanted)"
            fi ;;
        cc) have cc || printf 'no C compiler (cc) in PATH|install gcc and the C library headers; Debian: apt-get install gcc libc6-dev\n' ;;
        python3)
            if ! have python3; then
                printf 'no python3 in PATH|install Python 3.8 or newer; Debian: apt-get install python3\n'
            elif ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))'; then
                printf '%s, expected 3.8 or newer|install a newer Python\n' "$(python3 --version 2>&1)"
            fi ;;
    esac
}

# Makes sure that tools are there: installs what a package brings where that is possible, else says what is missing.
need() {
    local tool found packages=()
    for tool in "$@"; do
        [ -n "$(lacks "$tool")" ] || continue
        case $tool in
            cc) packages+=(gcc libc6-dev) ;;
            python3) packages+=(python3) ;;
        esac
    done
    if [ ${#packages[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && have apt-get; then
        say "installing with apt-get: ${packages[*]}"
        # What is still missing after a failure is said below.
        apt-get update -qq || true
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" || true
    fi
    for tool in "$@"; do
        found=$(lacks "$tool")
        [ -z "$found" ] || fail "$tool: ${found%%|*}" "${found#*|}"
    done
}

need_binary() {
    [ -x "$BIN" ] || fail "no binary at $BIN" "./debug.sh build"
}

cmd_build() {
    if [ -n "${ORCHESTRATOR:-}" ]; then
        need_binary
        return
    fi
    need cargo cc
    [ -x "$BIN" ] || say "building with the profile $PROFILE: about $(build_time) on two cores the first time"
    cargo build --profile "$PROFILE" --locked --bin orchestrator
}

# How long a build from nothing takes.
build_time() { if [ "$PROFILE" = quick ]; then echo "3 min"; else echo "7 min"; fi; }

# --- devices ---------------------------------------------------------------------------------------------------------

check_id() {
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] \
        || fail "'$1' is no device id" "letters, digits, '.', '_' and '-', at most 64, beginning with a letter or digit" 2
}

default_id() { printf '%s\n' "${DEVICE_ID:-$(uname -n)}"; }

# When a process started, in ticks since boot: with its number this names one process for ever.
start_time() {
    local stat
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    # The name stands in brackets and may hold anything: count the fields behind its end.
    read -r -a stat <<<"${stat##*) }"
    [ "${stat[0]}" != Z ] && printf '%s\n' "${stat[19]}"
}

# The process of a device that was started here, if it still runs.
pid_of() {
    local pid started
    { read -r pid started <"$RUN/$1.pid"; } 2>/dev/null || return 1
    [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ] && printf '%s\n' "$pid"
}

ids_started() {
    local file
    for file in "$RUN"/*.pid; do
        [ -e "$file" ] || continue
        file=${file##*/}
        printf '%s\n' "${file%.pid}"
    done
}

started_here() {
    local ids
    ids=$(ids_started | paste -sd ' ' -)
    printf 'started here: %s\n' "${ids:-nothing}"
}

# Whether the volume shows a device alive. Ids need no quoting in JSON, so no JSON reader is needed here.
shown_alive() {
    { "$BIN" devices list --json 2>/dev/null || true; } | tr -d ' \t\r\n' | tr '{' '\n' \
        | grep -F "\"device\":\"$1\"" | grep -qF '"alive":true'
}

# Whether the heartbeat of a device is the one of this process, not of an earlier one.
heartbeat_of() { { tr -d ' \t\r\n' <"$COMMON/Devices/$1.json"; } 2>/dev/null | grep -qE "\"pid\":$2[,}]"; }

# One at a time: two "up" of one id would both see nothing running.
with_lock() {
    mkdir -p "$RUN"
    if have flock; then
        exec 9>"$RUN/lock"
        flock -w 60 9 || fail "another debug.sh works here for a minute" "wait for it, or look who holds $RUN/lock"
    fi
}

# The last lines with which a device ends its start, from its output: what is where, and what to type next.
ready_lines() { tac | sed -n '/ stop   /,/^ready     device /{p;/^ready     device /q}' | tac; }

# wait_ready COMMAND…: prints these lines once the command, which shows a device's output, has them.
wait_ready() {
    local until=$((SECONDS + UP_SECONDS)) lines
    while [ "$SECONDS" -lt "$until" ]; do
        lines=$("$@" 2>/dev/null | ready_lines)
        [ -z "$lines" ] || { printf '%s\n' "$lines"; return; }
        sleep 0.1
    done
    say "next      ./debug.sh status; the device says no more yet: $*"
}

cmd_up() {
    case ${1:-} in
        --native) shift ;;
        '' | -*)
            if engine_answers >/dev/null && has_compose; then
                up_containers "$@"
                return
            fi
            [ $# -eq 0 ] || fail "no container engine with compose answers, which '$1' is for" "./debug.sh up --native, or: docker version"
            say "no container engine with compose answers: starting a device as a process" ;;
    esac
    up_native "$@"
}

up_native() {
    local id pid out seconds=0
    id=${1:-$(default_id)}
    [ $# -eq 0 ] || shift
    check_id "$id"
    cmd_build
    with_lock
    if pid=$(pid_of "$id"); then
        say "device    $id already runs (process $pid)"
        return 0
    fi
    out=$RUN/$id.out
    # The lock must not live on in the device, nor the device end with this terminal.
    if have setsid; then
        setsid "$BIN" run --device-id "$id" "$@" >"$out" 2>&1 </dev/null 9>&- &
    else
        nohup "$BIN" run --device-id "$id" "$@" >"$out" 2>&1 </dev/null 9>&- &
    fi
    pid=$!
    # A device that has ended already has no start time, and is no running one.
    printf '%s %s\n' "$pid" "$(start_time "$pid" || true)" >"$RUN/$id.pid"
    until heartbeat_of "$id" "$pid" && shown_alive "$id"; do
        if ! pid_of "$id" >/dev/null; then
            local code=0
            wait "$pid" || code=$?
            rm -f "$RUN/$id.pid"
            tail -n 20 "$out" >&2
            case $code in
                4) fail "device $id ended with exit code 4: the folder $COMMON cannot be used" "./debug.sh check" 4 ;;
                5) fail "device $id ended with exit code 5: a living device has this id" "choose another one: ./debug.sh up ID" 5 ;;
                *) fail "device $id ended with exit code $code" "read $out" ;;
            esac
        fi
        if [ "$seconds" -ge $((UP_SECONDS * 10)) ]; then
            tail -n 20 "$out" >&2
            fail "device $id runs (process $pid), but is not shown alive after $UP_SECONDS s" "read $out; ./debug.sh down $id"
        fi
        sleep 0.1
        seconds=$((seconds + 1))
    done
    say "device    $id is alive (process $pid)"
    say "log       $COMMON/Logs/orchestrator.$id.$(date -u +%F).log"
    say "          start-up messages: $out"
    case " $* " in *' -q '* | *' --quiet '*) return ;; esac
    wait_ready cat "$out"
}

cmd_down() {
    no_more "${@:2}"
    local id pid ids=() waited=0 left
    if [ $# -gt 0 ]; then
        check_id "$1"
        [ -e "$RUN/$1.pid" ] || fail "no device $1 was started here" "$(started_here)" 3
        ids=("$1")
    else
        mapfile -t ids < <(ids_started)
    fi
    if [ $# -eq 0 ] && [ -f docker-compose.yml ] && engine_answers >/dev/null && has_compose && compose_running; then
        compose down
    elif [ ${#ids[@]} -eq 0 ]; then
        say "nothing runs that was started here"
    fi
    [ ${#ids[@]} -gt 0 ] || return 0
    with_lock
    for id in "${ids[@]}"; do
        if pid=$(pid_of "$id"); then
            kill -TERM "$pid" 2>/dev/null || true
            say "$id: asked to stop (process $pid)"
        fi
    done
    while :; do
        left=()
        for id in "${ids[@]}"; do
            [ -e "$RUN/$id.pid" ] || continue
            if pid_of "$id" >/dev/null; then
                left+=("$id")
            else
                rm -f "$RUN/$id.pid"
                say "$id: stopped"
            fi
        done
        [ ${#left[@]} -gt 0 ] || return 0
        [ "$waited" -lt $((DOWN_SECONDS * 10)) ] \
            || fail "still running after $DOWN_SECONDS s: ${left[*]}" "./debug.sh kill ${left[0]}"
        sleep 0.1
        waited=$((waited + 1))
    done
}

cmd_restart() {
    no_more "${@:2}"
    local id=${1:-}
    if [ -z "$id" ] && [ -f docker-compose.yml ] && engine_answers >/dev/null && has_compose && compose_running; then
        build_image full "$IMAGE"
        # As many workers as there are.
        compose_up --force-recreate --scale "worker=$(compose ps -q worker | wc -l)"
        return
    fi
    # Without an id: all that were started here, or the default one.
    local ids=()
    if [ -n "$id" ]; then ids=("$id"); else mapfile -t ids < <(ids_started); fi
    [ ${#ids[@]} -gt 0 ] || ids=("$(default_id)")
    for id in "${ids[@]}"; do
        check_id "$id"
        if [ -e "$RUN/$id.pid" ]; then (cmd_down "$id"); fi
    done
    for id in "${ids[@]}"; do (up_native "$id"); done
}

cmd_kill() {
    no_more "${@:2}"
    local id=${1:-} pid
    [ -n "$id" ] || fail "kill: which device?" "$(started_here)" 2
    check_id "$id"
    pid=$(pid_of "$id") || fail "no device $id runs as a process that was started here" "$(started_here); in containers: docker compose kill SERVICE" 3
    kill -KILL "$pid"
    rm -f "$RUN/$id.pid"
    say "$id: killed (process $pid). Once its lease has run out, the other devices take its runs."
}

# --- containers ------------------------------------------------------------------------------------------------------

# The socket of the engine that docker speaks with; one that is no socket of this machine is not handed over.
engine_socket() {
    local host=${DOCKER_HOST:-$(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null || true)}
    case $host in unix://*) host=${host#unix://} ;; *) host=/var/run/docker.sock ;; esac
    printf '%s\n' "${DOCKER_SOCKET:-$host}"
}
engine_answers() { have docker && timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null; }
has_compose() { docker compose version >/dev/null 2>&1 || have docker-compose; }
need_engine() {
    have docker || fail "no docker in PATH" "install Docker; Debian: apt-get install docker.io docker-compose"
    engine_answers >/dev/null || fail "no container engine answers" "is it running, and may $(whose) use it? docker version"
}

# Says to compose only what differs from its defaults, so that devices started by hand and from here are the same.
compose() (
    [ "$IMAGE" = aios-orchestrator ] || export AIOS_IMAGE=$IMAGE
    [ "$COMMON" != "$ROOT/Common" ] || unset AIOS_COMMON
    [ "$PROGRAMS" != "$ROOT/Programs" ] || unset AIOS_PROGRAMS
    # Of a rootless engine, or another one than the usual.
    [ "$(engine_socket)" = /var/run/docker.sock ] || export DOCKER_SOCKET=${DOCKER_SOCKET:-$(engine_socket)}
    if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
)

compose_running() { [ -n "$(compose ps -aq 2>/dev/null)" ]; }

# build_image TARGET NAME: the profile is $PROFILE
build_image() {
    local base bases
    need_engine
    mapfile -t bases < <(sed -n 's/^FROM \([^ ]*:[^ ]*\).*/\1/p' Dockerfile)
    for base in "${bases[@]}"; do
        docker image inspect "$base" >/dev/null 2>&1 || docker pull "$base" \
            || fail "$base is not here and cannot be pulled" "./debug.sh base-images makes a stand-in; as root"
    done
    docker build --target "$1" --tag "$2" --build-arg "PROFILE=$PROFILE" .
}

# A container with the folders, rights and limits of a device.
run_image() {
    need_engine
    mkdir -p "$COMMON" || fail "cannot make $COMMON" "look at the rights of the folder above it" 4
    docker image inspect "$IMAGE" >/dev/null 2>&1 || build_image full "$IMAGE"
    docker run --rm --cap-drop ALL --cap-add SETUID --cap-add SETGID --security-opt no-new-privileges --read-only \
        --env AIOS_UID="${AIOS_UID:-owner}" --env AIOS_GID="${AIOS_GID:-owner}" \
        --tmpfs /tmp:size=64m,mode=1777 --volume "$COMMON:/aios/Common" --volume "$PROGRAMS:/aios/Programs:ro" "$@"
}

cmd_image() { no_more "$@"; build_image full "$IMAGE"; }

size_of() { docker image inspect --format '{{.Size}}' "$1" | awk '{ printf "%.1f MB", $1 / 1e6 }'; }

cmd_slim() {
    no_more "$@"
    PROFILE=release
    local full
    full=$(tagged "$IMAGE" full)
    build_image full "$full"
    build_image slim "$SLIM"
    printf '%-24s %10s\n' "$full" "$(size_of "$full")" "$SLIM" "$(size_of "$SLIM")"
}

cmd_base-images() { docker/base-images "$@"; }
cmd_image-test() { run_image --env DEVICE_ID=selftest "$IMAGE" --test "$@"; }
# The shell is who the devices are.
cmd_shell() { no_more "$@"; run_image --user "$(stat -c %u:%g -- "$COMMON")" --interactive --tty --entrypoint bash "$IMAGE"; }
cmd_compose-logs() { need_engine; compose logs --tail 100 -f "$@"; }

up_containers() {
    say "a container engine answers (version $(engine_answers)): starting with compose; as a process instead: ./debug.sh up --native"
    docker image inspect "$IMAGE" >/dev/null 2>&1 || say "building the image: about 4 min 30 s on two cores the first time"
    build_image full "$IMAGE"
    mkdir -p "$COMMON" "$RUN"
    compose_up "$@"
}

# Starts the devices; says why where that fails, and what comes next where it does not.
compose_up() {
    local code=0 device setup
    compose up -d "$@" || code=$?
    setup=$(compose ps -aq setup 2>/dev/null | head -n 1)
    if [ "$code" != 0 ] && [ -n "$setup" ] && [ "$(docker inspect --format '{{.State.ExitCode}}' "$setup")" = 4 ]; then
        docker logs "$setup" >&2
        fail "no device was started: the folder $COMMON cannot be used" "the line above names the command that fixes it" 4
    elif [ "$code" != 0 ]; then
        fail "compose ended with exit code $code" "its lines above say why; is the port taken? AIOS_HTTP_PORT names another; ./debug.sh down stops what was started" "$code"
    fi
    device=$(compose ps -q orchestrator | head -n 1)
    [ -n "$device" ] || return 0
    wait_ready device_output "$device"
}

# What a container has printed since its last start.
device_output() { docker logs --since "$(docker inspect --format '{{.State.StartedAt}}' "$1")" "$1" 2>&1; }

# --- looking ---------------------------------------------------------------------------------------------------------

# A verb of the binary: the one that was built here, else the one in the image.
ask() {
    if [ ! -x "$BIN" ] && engine_answers >/dev/null && docker image inspect "$IMAGE" >/dev/null 2>&1; then
        run_image "$IMAGE" "$@"
    else
        need_binary
        "$BIN" "$@"
    fi
}

cmd_status() { ask status "$@"; }
cmd_logs() { ask logs -f "$@"; }
cmd_selftest() { cmd_build; "$BIN" --test "$@"; }

count() { find "$1" "${@:2}" -type f ! -name .gitkeep 2>/dev/null | wc -l; }

cmd_state() {
    no_more "$@"
    [ -d "$COMMON" ] || fail "no folder $COMMON" "./debug.sh up makes it" 4
    printf '%-20s %8d files\n' \
        "waiting in Triggers" "$(count "$COMMON/Triggers" -maxdepth 1 -name '*.json' ! -name '.*')" \
        ".running" "$(count "$COMMON/Triggers/.running")" \
        ".waiting" "$(count "$COMMON/Triggers/.waiting")" \
        "processed" "$(count "$COMMON/TriggersProcessed" ! -path '*/rejected/*')" \
        "rejected" "$(count "$COMMON/TriggersProcessed/rejected" ! -name '*.error.json')" \
        "Results" "$(count "$COMMON/Results")" \
        "Logs" "$(count "$COMMON/Logs")"
    if [ ! -e "$COMMON/state.json" ]; then
        say "state.json           none yet"
    elif have python3; then
        python3 -m json.tool "$COMMON/state.json" \
            || fail "$COMMON/state.json does not parse" "a running device sets it aside and makes it anew"
    else
        cat "$COMMON/state.json"
    fi
}

cmd_trigger() {
    no_more "${@:2}"
    local name=${1:-hello} folder=$COMMON/Triggers file=examples/triggers/${1:-hello}.json target
    if ! [[ $name =~ ^[A-Za-z0-9_-]+$ ]] || ! [ -f "$file" ]; then
        fail "no example trigger '$name'" "there are: $(cd examples/triggers && printf '%s ' *.json | sed 's/\.json//g')" 3
    fi
    mkdir -p "$folder" || fail "cannot make $folder" "look at the rights of $COMMON" 4
    target=$folder/$name-$(date -u +%H%M%S)-$$.json
    # Under a hidden name first: no device looks at those.
    cp -- "$file" "$folder/.${target##*/}"
    mv -n -- "$folder/.${target##*/}" "$target"
    say "dropped   $target"
    say "          $(<"$file")"
    if [ -x "$BIN" ]; then
        say "next      $BIN runs list --limit 5"
        say "          $BIN runs logs -f ${target##*/}"
    fi
    say "          its result appears in $COMMON/Results/$(date -u +%F)"
}

# --- check -----------------------------------------------------------------------------------------------------------

CHECK_FAILED=0
good() { printf 'ok       %-12s %s\n' "$1" "$2"; }
note() { printf 'note     %-12s %s\n         %-12s hint: %s\n' "$1" "$2" '' "$3"; }
bad() {
    CHECK_FAILED=1
    printf 'missing  %-12s %s\n         %-12s hint: %s\n' "$1" "$2" '' "$3"
}

check_tool() {
    local found
    found=$(lacks "$1")
    if [ -n "$found" ]; then "$4" "$2" "${found%%|*}" "${found#*|}"; else good "$2" "$3"; fi
}

check_limit() {
    local value
    if ! { value=$(<"/proc/sys/fs/inotify/$1"); } 2>/dev/null; then
        note inotify "$1 cannot be read" "the scan every 2 s works without file events"
    elif [ "$value" -lt "$2" ]; then
        note inotify "$1 is $value, expected $2 or more" "sysctl fs.inotify.$1=$2; without it the scan every 2 s does the work"
    else
        good inotify "$1 is $value"
    fi
}

check_folders() {
    local probe kind free tried
    if ! mkdir -p "$COMMON" 2>/dev/null; then
        bad Common "$COMMON cannot be made" "make it, or name another folder in AIOS_COMMON"
    elif ! probe=$(mktemp "$COMMON/.check.XXXXXX" 2>/dev/null); then
        bad Common "$COMMON is not writable for $(whose)" "give the rights, or look whether it is mounted read-only or full"
    else
        good Common "$COMMON is writable"
        if ! have flock; then
            note locks "not tried: no flock program" "the self-test tries the locks"
        elif
            # The inner one must be refused (78); the outer one must not (77, or another code where locks do not work).
            tried=0
            flock -n -E 77 "$probe" flock -n -E 78 "$probe" true 2>/dev/null || tried=$?
            [ "$tried" = 78 ]
        then
            good locks "a lock in $COMMON excludes a second one"
        else
            bad locks "a lock in $COMMON does not exclude a second one" "mount the folder with working locks; see the self-test"
        fi
        rm -f -- "$probe"
        kind=$(stat -f -c %T -- "$COMMON" 2>/dev/null || echo unknown)
        case $kind in
            nfs* | smb* | cifs | fuse* | 9p | v9fs | ceph | afs | unknown*)
                note "file system" "$kind" "file events may not arrive from other machines: the scan every 2 s finds triggers, leases are 60 s" ;;
            *) good "file system" "$kind" ;;
        esac
        free=$(df -Pk -- "$COMMON" | awk 'NR == 2 { print int($4 / 1024) }')
        if [ "$free" -lt 100 ]; then
            bad space "$free MiB free in $COMMON, expected 100 or more" "./debug.sh clean, or make room"
        else
            good space "$free MiB free in $COMMON"
        fi
    fi
    if [ -d "$PROGRAMS" ] && [ -r "$PROGRAMS" ] && [ -x "$PROGRAMS" ]; then
        good Programs "$PROGRAMS holds $(count "$PROGRAMS" -maxdepth 1 -name '*.toml') job files"
    else
        bad Programs "$PROGRAMS cannot be read" "make it, or name another folder in AIOS_PROGRAMS"
    fi
    if mkdir -p "$RUN" 2>/dev/null && [ -w "$RUN" ]; then
        good .run "$RUN is writable"
    else
        bad .run "$RUN is not writable" "give the rights: up and down keep process numbers there"
    fi
}

# Containers are no need: without them a device runs what is no container.
check_engine() {
    local version socket
    socket=$(engine_socket)
    if ! have docker; then
        note engine "no docker in PATH" "only jobs in containers and ./debug.sh up need it"
    elif version=$(engine_answers); then
        good engine "version $version answers"
        if has_compose; then good compose "$(docker compose version --short 2>/dev/null || docker-compose version --short)"
        else note compose "neither docker compose nor docker-compose is there" "./debug.sh up starts a process instead"; fi
    elif [ -S "$socket" ] && ! [ -w "$socket" ]; then
        note engine "$socket is not writable for $(whose)" "it belongs to the group $(stat -c %G -- "$socket"): usermod -aG $(stat -c %G -- "$socket") USER"
    else
        note engine "no container engine answers" "start it; docker version says more"
    fi
}

cmd_check() {
    no_more "$@"
    # Who starts devices in containers needs none of these.
    local bad=bad
    if engine_answers >/dev/null && has_compose; then bad=note; fi
    check_tool cargo rust "$(rust_found) (expected $(rust_wanted) or newer)" "$bad"
    check_tool cc compiler "$(command -v cc || true)" "$bad"
    check_tool python3 python3 "$(python3 --version 2>&1 || true) (expected 3.8 or newer)" "$bad"
    if [ -x "$BIN" ]; then good binary "$BIN"; else note binary "not built yet" "./debug.sh build"; fi
    check_limit max_user_instances 128
    check_limit max_user_watches 8192
    check_folders
    check_engine
    if [ "$CHECK_FAILED" = 0 ]; then say "this machine is ready"; else say "something is missing: see the hints above"; fi
    return "$CHECK_FAILED"
}

# --- test, bench, clean ----------------------------------------------------------------------------------------------

cmd_test() {
    local failed=() started=$SECONDS what=all tests=()
    need cargo cc python3
    if [ "${1:-}" = quick ]; then
        shift
        what=quick
        tests=(--lib --test sim --test it)
        say "testing without containers and long simulations: about 2 min on two cores, and 8 min before that to build the first time"
            # Most of these tests wait most of the time.
        export AIOS_SIM_SEEDS=${AIOS_SIM_SEEDS:-400} RUST_TEST_THREADS=${RUST_TEST_THREADS:-6}
    else
        say "running every test: about 20 min on two cores, half of it building the first time; ./debug.sh test quick takes 2 min once built"
    fi
    case ${1:-} in '' | -*) ;; *) fail "test: what is '$1'?" "./debug.sh test [quick] [OPTIONS of cargo test]" 2 ;; esac
    cargo test --locked "${tests[@]}" "$@" || failed+=("cargo test")
    PYTHONDONTWRITEBYTECODE=1 python3 -m unittest discover -s tests/programs || failed+=("Python tests")
    if [ ${#failed[@]} -gt 0 ]; then
        say "FAILED: $(printf '%s, ' "${failed[@]}" | sed 's/, $//') ($((SECONDS - started)) s)"
        return 1
    fi
    say "PASSED: $what tests ($((SECONDS - started)) s)"
}

cmd_checks() { no_more "$@"; .ci/run; }
cmd_bench() {
    local bench=pipeline
    case "${1:-}" in growth) bench=$1 && shift ;; esac
    need cargo cc
    cargo bench --locked --bench "$bench" "$@"
}

# Removes a file or folder; of a folder that the repository keeps only what is in it.
empty() {
    if [ -e "$1/.gitkeep" ]; then
        find "$1/" -mindepth 1 -maxdepth 1 ! -name .gitkeep -exec rm -rf -- {} +
    else
        rm -rf -- "$1"
    fi
}

# Whether there is a file or folder with something in it that the repository does not keep.
holds() {
    [ -e "$1" ] || [ -L "$1" ] || return 1
    [ ! -e "$1/.gitkeep" ] || [ -n "$(find "$1/" -mindepth 1 ! -name .gitkeep -print -quit)" ]
}

cmd_clean() {
    local yes=0 all=0 option name answer found=() names=(Results Logs TriggersProcessed Reports IdleTask .work) ids=() alive
    for option in "$@"; do
        case $option in
            --yes) yes=1 ;;
            --all) all=1 ;;
            *) fail "clean: unknown option '$option'" "clean [--yes] [--all]" 2 ;;
        esac
    done
    mapfile -t ids < <(ids_started)
    for name in "${ids[@]}"; do
        if pid_of "$name" >/dev/null; then fail "device $name runs" "./debug.sh down"; fi
        rm -f -- "$RUN/$name.pid"
    done
    if [ -d "$COMMON/Devices" ]; then
        # Devices of other machines share the folder. A minute is more than any default lease on a local file system.
        if [ -x "$BIN" ]; then
            alive=$({ "$BIN" devices list --json 2>/dev/null || true; } | grep -cE '"alive": *true' || true)
        else
            alive=$(find "$COMMON/Devices" -name '*.json' -mmin -1 -exec grep -LE '"left": *true' {} + | wc -l)
        fi
        [ "$alive" = 0 ] || fail "devices still live on $COMMON" "stop them where they run; see ./debug.sh status"
    fi
    [ "$all" = 0 ] || names+=(Backups Triggers Devices state.json .revisions .state.lock .volume .kept)
    # Kept when a damaged state was made anew.
    for name in "$COMMON"/state.json.corrupt-*; do names+=("${name##*/}"); done
    for name in "${names[@]}"; do
        if holds "$COMMON/$name"; then found+=("$name"); fi
    done
    if [ ${#found[@]} -eq 0 ]; then
        say "nothing to delete in $COMMON"
        return 0
    fi
    say "in $COMMON:"
    (cd -- "$COMMON" && du -sh -- "${found[@]}")
    if [ "$yes" = 0 ]; then
        [ -t 0 ] || fail "clean asks before it deletes, and there is no terminal" "./debug.sh clean --yes" 2
        read -r -p "delete these? [y/N] " answer || answer=
        case $answer in y | Y | yes) ;; *) say "nothing was deleted"; return 0 ;; esac
    fi
    for name in "${found[@]}"; do empty "$COMMON/$name"; done
    rm -f -- "$RUN"/*.out
    say "deleted"
}

# --- menu ------------------------------------------------------------------------------------------------------------

cmd_menu() {
    local items=(check build selftest image image-test shell up down compose-logs status logs trigger state slim clean test checks quit)
    local texts=("check the machine and its container engine" "build the binary" "run the self-test" "build the image" "run the self-test in the image"
        "a shell in the image" "start: with compose, else as a process" "stop" "follow what the containers print" "status"
        "follow the orchestrators' logs (Ctrl-C ends it)" "drop an example trigger" "show the state" "build the slim image, show sizes"
        "clean up" "run all tests" "run all checks" "quit") choice verb argument i
    [ -t 0 ] || fail "the menu needs a terminal" "./debug.sh help names the verbs" 2
    # Ctrl-C ends what runs, not the menu.
    trap : INT
    while :; do
        echo
        for i in "${!items[@]}"; do printf '%3d  %s\n' $((i + 1)) "${texts[i]}"; done
        read -r -p "choose [1-${#items[@]}, a verb with its arguments, or q]: " choice argument || break
        [ -n "$choice" ] || continue
        verb=$choice
        if [[ $choice =~ ^[0-9]{1,2}$ ]] && [ "$((10#$choice))" -ge 1 ] && [ "$((10#$choice))" -le ${#items[@]} ]; then
            verb=${items[10#$choice - 1]}
        fi
        case $verb in quit | q | exit) break ;; menu) continue ;; esac
        # shellcheck disable=SC2086 # the arguments are words
        (cd -- "$CALLED_FROM" && exec "$ROOT/debug.sh" "$verb" $argument) || say "($verb ended with exit code $?)"
    done
}

main() {
    local verb=${1:-}
    [ $# -eq 0 ] || shift
    if [ -z "$verb" ]; then
        if [ -t 0 ] && [ -t 1 ]; then verb=menu; else verb=help; fi
    fi
    case $verb in
        check | build | selftest | up | down | restart | kill | status | logs | trigger | state | test | checks | bench | clean | menu | \
            image | slim | base-images | image-test | shell | compose-logs) "cmd_$verb" "$@" ;;
        help | -h | --help) usage ;;
        *) usage >&2; fail "no verb '$verb'" "./debug.sh help" 2 ;;
    esac
}

main "$@"
