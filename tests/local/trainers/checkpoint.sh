#!/bin/sh
# Counts its attempts in its checkpoints folder; hangs in the first $SM_HP_HANGS ones.
file="$SM_CHECKPOINT_DIR/attempts"
attempts=$(expr "$(cat "$file" 2>/dev/null || echo 0)" + 1)
echo "$attempts" >"$file"
[ "$attempts" -le "$SM_HP_HANGS" ] && exec sleep 600
echo "objective=0.$attempts"
