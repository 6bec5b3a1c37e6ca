#!/bin/sh
# Plays a list of results, one per training job; the last repeats. "await:NUMBER" blocks until somebody has
# opened the pipe SM_HP_RELEASE for writing, then prints NUMBER as the objective; "await:fail" fails then,
# "fail" at once. A blocked shell costs no processor time and less than 1 MB.
number=${TRAINING_JOB_NAME%-*}
number=$(expr "${number##*-}" + 0)
set -- $SM_HP_SEQUENCE
[ "$number" -gt "$#" ] && number=$#
shift $((number - 1))
case $1 in
await:*) read -r _ <"$SM_HP_RELEASE" ;;
esac
case ${1#await:} in
fail) exit 1 ;;
*) echo "objective=${1#await:}" ;;
esac
