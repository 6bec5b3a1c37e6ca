#!/bin/sh
# Plays a list of outcomes, one per training job: a number is printed as the objective; "fail" exits with 3,
# "none" prints nothing, "nan" prints a value that is no number, "hang" runs until it is stopped, "last"
# does so too but prints 0.99 when it is stopped. The last outcome repeats.
number=${TRAINING_JOB_NAME%-*}
number=$(expr "${number##*-}" + 0)
set -- $SM_HP_SEQUENCE
[ "$number" -gt "$#" ] && number=$#
shift $((number - 1))
case $1 in
fail)
    echo "play: told to fail" >&2
    exit 3
    ;;
none) exit 0 ;;
hang) exec sleep 600 ;;
last)
    trap 'echo "objective=0.99"; exit 0' TERM
    echo "play: waits to be stopped"
    sleep 600 &
    wait
    ;;
*)
    [ -n "$SM_HP_SECONDS" ] && sleep "$SM_HP_SECONDS"
    echo "objective=$1"
    ;;
esac
