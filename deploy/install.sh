#!/bin/sh
# Makes .venv from requirements.lock, every download checked against its hash. Usage: install.sh PYTHON
# A second run with the same lock does nothing; an interrupted one is completed by the next.
set -eu
python=$1
here=$(pwd)
stamp=.venv/.installed
wanted=$(cat requirements.lock pyproject.toml | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
wanted="$wanted $here"

[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0

# Scripts in a virtual environment name its path: one that was copied along with the checkout points elsewhere.
if [ -e .venv ] && ! head -n 1 .venv/bin/pip 2>/dev/null | grep -qF "$here/.venv/bin/"; then
    rm -rf .venv
fi
echo "Installing the Python packages of requirements.lock …"
[ -x .venv/bin/pip ] || "$python" -m venv .venv

# uv first: it installs the rest in a sixth of pip's time. It does not read pip's configuration, so what that says
# about index and certificates is handed over; where uv cannot get through, pip does it. Compiled at once, as pip
# does: otherwise every process would, the first time, or each time where PYTHONDONTWRITEBYTECODE is set.
setting() { .venv/bin/pip config get "$1" 2>/dev/null || true; }
with_uv() {
    sed -n '/^uv==/,/[^\\]$/p' requirements.lock >.venv/uv.txt
    .venv/bin/pip install -q --disable-pip-version-check --require-hashes -r .venv/uv.txt || return 1
    index=${PIP_INDEX_URL:-$(setting global.index-url)}
    certificates=${SSL_CERT_FILE:-${PIP_CERT:-$(setting global.cert)}}
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [ -z "$certificates" ] || export SSL_CERT_FILE="$certificates"
    .venv/bin/uv pip install -q --compile-bytecode --python .venv/bin/python --require-hashes -r requirements.lock
}
with_uv || {
    echo "uv could not do it; installing with pip, which takes a minute longer" >&2
    .venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
}

# compat: a path entry instead of a list of today's packages, so that a new top-level package needs no reinstall.
.venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation \
    --config-settings editable_mode=compat -e .
echo "$wanted" >"$stamp"
