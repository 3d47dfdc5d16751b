#!/bin/sh
# Installs Wardround from this folder, without network:  ./install.sh [FOLDER]   (default: /opt/wardround)
# Nothing is installed unless every file is the one that SHA256SUMS names. Compare the SHA-256 of that file itself with
# the one that its maker told you on another way.
set -eu
cd "$(dirname "$0")"
target=${1:-/opt/wardround}
sha256sum --check --strict --quiet SHA256SUMS
for file in packages/*; do
    grep --quiet --fixed-strings --line-regexp "$(sha256sum "$file")" SHA256SUMS || {
        echo "$file is not in SHA256SUMS" >&2
        exit 1
    }
done
"${PYTHON:-python3.11}" -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links packages \
    --only-binary :all: --require-hashes --requirement requirements.txt
"$target/bin/wardround" --version
