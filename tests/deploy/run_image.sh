#!/usr/bin/env bash
# Run a command in the root of an image, as an engine does with --read-only --cap-drop all and no-new-privileges:
#   unshare --net --mount --pid --ipc --uts --fork --kill-child run_image.sh ROOT UID:GID [MOUNT]... -- COMMAND...
# MOUNT is FOLDER:PLACE, or FOLDER:PLACE:ro. Needs root, and namespaces of its own, which it changes.
set -euo pipefail
root=$1
user=$2
shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
while [ "$1" != -- ]; do
    IFS=: read -r folder place mode <<< "$1"
    mount --bind "$folder" "$root$place"
    mount -o "remount,bind,nosuid,nodev,${mode:-rw}" "$root$place"
    shift
done
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
ip link set lo up
exec chroot "$root" setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups --no-new-privs \
    --bounding-set -all --inh-caps -all -- "$@"
