#!/bin/sh
# Says hello: hello.sh [NAME [SECONDS]]. With SECONDS it takes its time and counts, long enough to watch a failover.
set -eu

name=${1:-world}
seconds=${2:-0}
case $seconds in
    '' | *[!0-9]* | ??????*)
        echo "hello: SECONDS: expected a whole number of at most 5 digits, found '$seconds'" >&2
        exit 2
        ;;
esac

# A text as the inside of a JSON string.
json_text() {
    printf '%s' "$1" | tr '\000-\037' ' ' | sed 's/[\\"]/\\&/g'
}

echo "Hello, $name! This is attempt ${AIOS_ATTEMPT:-1} on ${AIOS_DEVICE_ID:-this machine}."
second=0
while [ "$second" -lt "$seconds" ]; do
    sleep 1
    second=$((second + 1))
    echo "$second of $seconds"
done

# What is written to $AIOS_RESULT becomes "result" in the result file.
if [ -n "${AIOS_RESULT:-}" ]; then
    printf '{"greeting": "Hello, %s!", "attempt": %s, "device": "%s"}\n' \
        "$(json_text "$name")" "${AIOS_ATTEMPT:-1}" "${AIOS_DEVICE_ID:-}" >"$AIOS_RESULT"
fi
