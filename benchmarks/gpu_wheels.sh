#!/usr/bin/env bash
# Collects the wheels that a GPU machine without network needs for gpu_check.sh and gpu_bench.sh, if it has only torch,
# triton and numpy. Run it on a machine with network, then copy the folder.
#
#   benchmarks/gpu_wheels.sh FOLDER                         # for Python 3.12 on x86-64 Linux
#   benchmarks/gpu_wheels.sh FOLDER --python-version 3.11
#   benchmarks/gpu_wheels.sh FOLDER --ptxas 3.9.0           # also the newer assembler in the wheel of this Triton
#
# PYTHON=… selects the interpreter whose pip downloads.
set -euo pipefail
usage="usage: benchmarks/gpu_wheels.sh FOLDER [--python-version 3.12] [--ptxas TRITON_VERSION]"
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3} folder='' version=3.12 triton=''
while [ $# -gt 0 ]; do
    case $1 in
        --python-version) version=${2:?$usage}; shift 2 ;;
        --ptxas) triton=${2:?$usage}; shift 2 ;;
        -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "$usage" >&2; exit 2 ;;
        *) folder=$1; shift ;;
    esac
done
[ -n "$folder" ] || { echo "$usage" >&2; exit 2; }
mkdir -p "$folder"

download() {
    "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version "$version" \
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$1" "${@:2}"
}

download "$folder" --constraint "$root/constraints.txt" msgspec rich typer nvidia-ml-py pytest
# Without its dependencies: they are torch and triton, which the machine has.
download "$folder" --no-deps 'liger-kernel>=0.8'
if [ -n "$triton" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    download "$work" --no-deps "triton==$triton"
    # A Triton wheel contains two assemblers. This is the newer one, in spite of its name for every GPU.
    unzip -q -o -j "$work"/triton-*.whl triton/backends/nvidia/bin/ptxas-blackwell -d "$work"
    # The file name has the release of the assembler, such as ptxas-13.4.
    release=$("$work/ptxas-blackwell" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    gzip -9 -c "$work/ptxas-blackwell" > "$folder/ptxas-$release.gz"
fi

(cd "$folder" && du -k -- * | sort -k2 | awk '{printf "%8.1f MB  %s\n", $1 / 1024, $2; sum += $1} END {printf "%8.1f MB\n", sum / 1024}')
cat <<END

On the GPU machine, with FOLDER for the path of this folder there:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site FOLDER/*.whl && export PYTHONPATH=/tmp/site
    benchmarks/gpu_check.sh --first
END
if [ -n "$triton" ]; then
    for file in "$folder"/ptxas-*.gz; do
        name=$(basename "$file" .gz)
        echo "    gunzip -c FOLDER/$name.gz > /tmp/$name && chmod +x /tmp/$name"
        echo "    benchmarks/gpu_check.sh --ptxas default /tmp/$name"
    done
fi
