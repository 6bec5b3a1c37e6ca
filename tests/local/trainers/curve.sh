#!/bin/sh
# Trains in epochs and prints the objective after each: "0.9:5" is 5 epochs at 0.9. There is one such curve per
# training job; the last one repeats. "x" stands for the value of the tuned hyperparameter x. SM_HP_PAUSE is
# the time that an epoch takes.
number=${TRAINING_JOB_NAME%-*}
number=$(expr "${number##*-}" + 0)
set -- $SM_HP_CURVES
[ "$number" -gt "$#" ] && number=$#
shift $((number - 1))
value=${1%:*}
[ "$value" = x ] && value=$SM_HP_X
epoch=0
while [ "$epoch" -lt "${1#*:}" ]; do
    sleep "${SM_HP_PAUSE:-0.02}"
    epoch=$((epoch + 1))
    echo "epoch=$epoch"
    echo "objective=$value"
done
