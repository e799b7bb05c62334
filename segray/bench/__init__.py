"""The benchmark command: segray's speed on this machine, beside the machine's limits and other solutions."""
