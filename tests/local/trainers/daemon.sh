#!/bin/sh
# Ends at once, but leaves a process in a session of its own behind, which starts another one.
setsid sh -c 'sleep 604 & sleep 605; true' >/dev/null 2>&1 </dev/null &
echo "objective=0.5"
