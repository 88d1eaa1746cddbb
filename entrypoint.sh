#!/bin/sh
# What tini starts in the container: runs a command, and after a signal ends only when all that it has started have ended.
# DeepSpeed's launcher dies of SIGTERM at once. If the container ended with it, the ranks would be killed as they save.
stopped=
trap 'stopped=1' TERM INT HUP USR1

others_are_running() {
    for folder in /proc/[0-9]*; do
        case ${folder#/proc/} in
            1 | "$$") ;;
            *) return 0 ;;
        esac
    done
    return 1
}

"$@"
code=$?
if [ "$stopped" ] && [ "$PPID" -eq 1 ]; then  # with --pid=host it would wait for the host
    while others_are_running; do sleep 0.2; done
fi
exit "$code"
