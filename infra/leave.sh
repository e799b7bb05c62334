#!/bin/sh
# Before a node is taken away: tell Ray, so that its worker finishes what it has and pulls nothing more; then wait until
# the worker is gone, SECONDS at most. For preStop hooks, systemd's ExecStop and spot notices.
#   leave.sh SECONDS
set -eu
seconds=$1
ray drain-node --address "${RAY_ADDRESS:-auto}" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "this node is being taken away" --deadline-remaining-seconds "$seconds" || exit 0
while [ "$seconds" -gt 0 ] && grep -qs "ray::_Actor" /proc/[0-9]*/cmdline; do
    sleep 1
    seconds=$((seconds - 1))
done
