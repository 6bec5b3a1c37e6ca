#!/bin/sh
# Prints the objectives of $SM_HP_CURVES, one list per training job (lists by ";", values by ","), one value
# per tenth of a second. The last list repeats. With "hang" as the last value it goes on until it is stopped.
number=${TRAINING_JOB_NAME%-*}
number=$(expr "${number##*-}" + 0)
count=$(printf '%s' "$SM_HP_CURVES" | tr ';' '\n' | grep -c .)
[ "$number" -gt "$count" ] && number=$count
curve=$(printf '%s' "$SM_HP_CURVES" | cut -d ';' -f "$number" | tr ',' ' ')
for value in $curve; do
    [ "$value" = hang ] && exec sleep 600
    echo "objective=$value"
    sleep 0.1
done
