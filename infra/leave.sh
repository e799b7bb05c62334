#!/bin/sh
# Drain a node before it is taken away. Its worker then finishes its tasks and takes no more. Wait until the worker has
# ended, for SECONDS at most. For preStop hooks, systemd's ExecStop and spot notices.
#   leave.sh SECONDS
set -eu
seconds=$1
ray drain-node --address "${RAY_ADDRESS:-auto}" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "this node is being taken away" --deadline-remaining-seconds "$seconds" || exit 0
while [ "$seconds" -gt 0 ] && grep -qs "ray::_Actor" /proc/[0-9]*/cmdline; do
    sleep 1
    seconds=$((seconds - 1))
done
