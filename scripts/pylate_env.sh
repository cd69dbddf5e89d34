#!/bin/sh
# The environment of the peer: PyLate 1.6.0 pins other versions of sentence-transformers and of both engines than we
# do, so it is compared from a virtual environment of its own (about 6 GB). Prints the path of its Python on stdout.
#
#   scripts/pylate_env.sh [FOLDER]      default .venv-pylate; PYTHON=/path/to/python3.11 chooses the interpreter
#
# Run again, it finds what is there and only prints. Packages come from wherever pip is configured to look.
set -eu

VERSION=1.6.0
SCANN=1.4.2  # the one we run, for its retriever on the same index
FOLDER=${1:-.venv-pylate}
PYTHON=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}

fail() {
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit 3
}

case $FOLDER in
-*) echo "usage: scripts/pylate_env.sh [FOLDER]" >&2 && exit 2 ;;
esac

READY=$FOLDER/.pylate-$VERSION-scann-$SCANN
if [ ! -f "$READY" ] || ! "$FOLDER/bin/python" -c 'import pylate.scores' 2>/dev/null >&2; then
    [ -n "$PYTHON" ] || fail "no Python found" "PYTHON=/path/to/python3.11 scripts/pylate_env.sh"
    if [ -e "$FOLDER" ] && [ ! -f "$FOLDER/pyvenv.cfg" ]; then
        fail "$FOLDER is there and is no virtual environment" "name another folder: scripts/pylate_env.sh FOLDER"
    fi
    echo "installing PyLate $VERSION into $FOLDER (about 6 GB, a few minutes)" >&2
    "$PYTHON" -m venv "$FOLDER" >&2 ||
        fail "$PYTHON cannot make a virtual environment" "install the venv module of this Python, or set PYTHON"
    "$FOLDER/bin/python" -m pip install --quiet --disable-pip-version-check "pylate==$VERSION" "scann==$SCANN" >&2 ||
        fail "pip could not install pylate==$VERSION and scann==$SCANN" "is there a network, or PIP_INDEX_URL for a mirror? then run it again"
    "$FOLDER/bin/python" -c 'import pylate.scores' >&2 ||
        fail "PyLate is installed in $FOLDER and cannot be imported" "rm -r $FOLDER, and run it again"
    touch "$READY"
fi
cd "$FOLDER/bin" && echo "$(pwd)/python"
