#!/usr/bin/env bash
# Build a target of deploy/docker/Dockerfile where there is no container engine, and print the folder of its root:
#   rehearse_image.sh FOLDER TARGET [BUILD-ARGUMENT=VALUE]...
# Debian's buildah runs every instruction, by chroot. What stands for the image of the Dockerfile's FROM is a bookworm
# that mmdebstrap makes, with Debian's Python 3.11 and, as in that image, without byte code of Python's own library. The
# index is the one of this machine's pip. FOLDER keeps the base, the layers and pip's downloads. Needs root.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
target=$2
shift 2
cd "$(dirname "$0")/../.."
base=$(sed -n 's/^ARG PYTHON=//p' deploy/docker/Dockerfile)

# Layers over one another where the kernel lets them be mounted; else each is a copy of the one before.
mkdir -p "$folder"/try/{lower,upper,work,merged}
driver=vfs
if mount -t overlay -o "lowerdir=$folder/try/lower,upperdir=$folder/try/upper,workdir=$folder/try/work" overlay \
    "$folder/try/merged" 2> /dev/null; then
    umount "$folder/try/merged"
    driver=overlay
fi
buildah() {
    TMPDIR=$folder command buildah --storage-driver $driver --root "$folder/$driver" --runroot "$folder/run" "$@"
}

# shellcheck disable=SC2016  # mmdebstrap's shell expands what stands in its hooks
make_base() {
    mmdebstrap --quiet --variant=minbase --include=python3-venv,python3-pip \
        --customize-hook='find "$1/usr/lib/python3.11" -name __pycache__ -prune -exec rm -r {} +' \
        --customize-hook='ln -s /usr/bin/python3 "$1/usr/local/bin/python"' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
        bookworm "$folder/base.tar"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$folder/base.tar" / > /dev/null
    buildah commit --quiet --rm "$container" "docker.io/library/$base" > /dev/null
    rm "$folder/base.tar"
}

# pip's configuration of this machine as a file, and the folders here that it names.
pip_configuration() {
    {
        echo "[global]"
        python3 -m pip config list | sed -nE "s/^(:env:|global|install|user|site)\.([a-z-]+)='(.*)'$/\2 = \3/p" | awk '!seen[$1]++'
    } > "$folder/pip.conf"
}
folders_of_pip() {
    sed -nE 's/^[a-z-]+ = //p' "$folder/pip.conf" | tr ' ' '\n' | sed -nE 's#^(file://)?(/.+)#\1 \2#p' \
        | while read -r first second; do
            # An index links to its files beside it.
            path=$([ "$first" = file:// ] && dirname "$second" || echo "${second:-$first}")
            [ ! -e "$path" ] || printf '%s\n' --volume "$path:$path:ro"
        done | paste - - | sort -u | tr '\t' '\n'
}

buildah images --quiet "docker.io/library/$base" > /dev/null 2>&1 || make_base
pip_configuration
mapfile -t volumes < <(folders_of_pip)
arguments=()
for argument in "$@"; do arguments+=(--build-arg "$argument"); done
build() {
    buildah build --isolation chroot --pull-never --format docker --layers --timestamp 0 \
        --secret "id=pip,src=$folder/pip.conf" "${volumes[@]}" "${arguments[@]}" \
        --target "$1" --tag "$2" --file deploy/docker/Dockerfile . >&2
}
# This buildah sees no stage in `FROM bundle-${BUNDLE}`, where BuildKit does; so it finds an image of that name.
bundle=$(sed -n 's/^ARG BUNDLE=//p' deploy/docker/Dockerfile)
for argument in "$@"; do bundle=$(sed -n 's/^BUNDLE=//p' <<< "$argument" | grep . || echo "$bundle"); done
buildah rm "harken-$target" > /dev/null 2>&1 || true
build app harken:app
[ "$target" = client ] || build "bundle-$bundle" "bundle-$bundle"
case $target in cpu | gpu | client) build "libraries-$target" "harken:libraries-$target" ;; esac
build "$target" "harken:$target"
# What no name leads to any more, of versions of the code that are gone; but not what other tests have mounted.
buildah containers --format '{{.ContainerName}}' --noheading | { grep -- -working-container || true; } \
    | while read -r container; do buildah rm "$container" > /dev/null; done
buildah rmi --prune > /dev/null 2>&1 || true
buildah inspect --type image "harken:$target" > "$folder/$target.json"
buildah mount "$(buildah from --pull-never --name "harken-$target" "harken:$target")"
