#!/bin/sh
# Ignores SIGTERM, and so does what it starts: a child in its group, and one in a session of its own.
trap '' TERM
sleep 601 &
setsid sh -c 'sleep 602; true' &
sleep 603
