#!/bin/sh
# Writes lines of 16 kB without an objective until it is stopped.
while :; do
    head -c 16000 /dev/zero | tr '\\0' x
    echo
    sleep 0.01
done
