#!/bin/sh
# Makes a Debian machine ready for `make test-real`: missing packages, container settings where there are none, a base image.
# Needs root. Safe to repeat: what is there stays as it is, and a second run takes under a second.
set -eu
cd "$(dirname "$0")"

BASE=${BASE:-python:3.13-slim-trixie}   # as in the Dockerfile

say() { echo "install: $*" >&2; }

if [ "$(id -u)" != 0 ]; then say "needs root (packages, containers)"; exit 1; fi
export PATH="$PATH:/usr/sbin:/sbin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# --- Debian packages ---------------------------------------------------------------------------------------------------

../support/debian-packages.sh debian-packages.txt

# --- Container settings, where the machine has none --------------------------------------------------------------------

write_if_absent() {  # PATH, contents on stdin
    if [ -e "$1" ]; then return; fi
    say "writes $1"
    mkdir -p "$(dirname "$1")"
    cat > "$1"
}
# overlay: with vfs every layer is a full copy
write_if_absent /etc/containers/storage.conf << 'END'
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
END
# runc, cgroupfs and file: what works without systemd; the limits: no more than an unprivileged machine may grant
write_if_absent /etc/containers/containers.conf << 'END'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END

# --- Base image --------------------------------------------------------------------------------------------------------
# Where images can be pulled, `podman pull docker.io/library/$BASE` beforehand and the tests use the real one. Else Debian's
# own Python stands in for it, arranged alike: `python` and `pip` in /usr/local/bin, no bytecode of the standard library.

if podman image exists "$BASE"; then exit 0; fi
say "makes localhost/$BASE from Debian packages"
mmdebstrap --quiet --variant=minbase --include=usr-is-merged,ca-certificates,python3,python3-venv,netbase,tzdata \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --aptopt='Acquire::Check-Valid-Until "false"' trixie "$work/base.tar"
podman import --quiet -c 'CMD ["python3"]' "$work/base.tar" "localhost/$BASE-bare" > /dev/null

# How this machine reaches its Python packages (authorities, pip's settings) is its own affair: it goes into the stand-in,
# never into the Dockerfile. Folders of this machine cannot be seen from inside a build and are left out.
cp "${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}" "$work/ca-certificates.crt"
python3 - > "$work/pip.conf" << 'END'
import subprocess, sys
shown = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
print("[global]")
for line in shown.splitlines():
    name, _, value = line.partition("=")
    key, value = name.rsplit(".", 1)[-1], value.strip("'\"")
    kept = [word for word in value.split() if not word.startswith(("file:", "/"))]
    if kept:
        print(key, "=", " ".join(kept))
END
cat > "$work/Dockerfile" << END
FROM localhost/$BASE-bare
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
RUN ln -s /usr/bin/python3 /usr/local/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED \\
 && python -m venv /tmp/venv \\
 && /tmp/venv/bin/python -m pip --python /usr/bin/python3 install --quiet --root-user-action ignore --no-cache-dir --no-compile pip setuptools wheel \\
 && apt-get -qq purge -y --auto-remove python3-venv && rm -rf /tmp/venv /root/.cache /var/lib/apt/lists/* /var/cache/apt/*.bin \\
 && find / -xdev -name __pycache__ -type d -prune -exec rm -rf '{}' +
END
buildah bud --quiet --format docker --isolation chroot --pull-never --squash -t "localhost/$BASE" "$work" > /dev/null
podman rmi --force "localhost/$BASE-bare" > /dev/null
