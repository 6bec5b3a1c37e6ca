#!/bin/sh
# Plays a list of outcomes, one per training job; the last repeats. A number is printed as the objective;
# "await:NUMBER" prints it once somebody has opened the pipe SM_HP_RELEASE for writing; "hang" runs until it
# is stopped; "stubborn" does too, and does not heed SIGTERM.
number=${TRAINING_JOB_NAME%-*}
number=$(expr "${number##*-}" + 0)
set -- $SM_HP_SEQUENCE
[ "$number" -gt "$#" ] && number=$#
shift $((number - 1))
case $1 in
await:*)
    read -r _ <"$SM_HP_RELEASE"
    echo "objective=${1#await:}"
    ;;
hang) exec sleep 600 ;;
stubborn)
    trap '' TERM
    exec sleep 600
    ;;
*) echo "objective=$1" ;;
esac
