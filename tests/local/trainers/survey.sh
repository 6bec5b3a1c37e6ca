#!/bin/sh
# Waits a while and prints its x as the objective. What else it does depends on the behaviour that it is told,
# and for some of them on the last digit of x, which is the same whenever this combination is tried.
case $SM_HP_BEHAVIOUR in
stubborn) trap '' TERM ;;
family)
    sleep 607 &
    setsid sh -c 'sleep 608; true' >/dev/null 2>&1 </dev/null &
    ;;
esac
sleep "$SM_HP_SECONDS"
if [ "$SM_HP_BEHAVIOUR" = epochs ]; then
    for epoch in 1 2 3; do
        echo "objective=$SM_HP_X"
        sleep "$SM_HP_SECONDS"
    done
fi
case $SM_HP_BEHAVIOUR/$SM_HP_X in
fails/*[1-3] | hopeless/*)
    echo "survey: told to fail" >&2
    exit 3
    ;;
nan/*[1-4]) echo "objective=nan" ;;
silent/*) ;;
*) echo "objective=$SM_HP_X" ;;
esac
