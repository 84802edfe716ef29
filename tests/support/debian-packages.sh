#!/bin/sh
# Installs what is missing of the Debian packages that LIST names, one a line, `#` begins a comment: debian-packages.sh LIST
# Needs root where something is missing. Safe to repeat: a second run takes under a second.
set -eu

say() { echo "install: $*" >&2; }

missing=
for package in $(sed 's/#.*//' "$1"); do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $package"
done
if [ -z "$missing" ]; then exit 0; fi

say "packages:$missing"
if [ "$(id -u)" != 0 ]; then say "needs root to install them"; exit 1; fi
export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
policy=
trap 'rm -f "$log" $policy' EXIT
if [ ! -e /usr/sbin/policy-rc.d ]; then   # packages must not start servers of their own
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
fi
apt-get -qq update
# shellcheck disable=SC2086  # a list of names
apt-get -qq install -y --no-install-recommends -o Dpkg::Use-Pty=0 $missing > "$log" 2>&1 || { cat "$log" >&2; exit 1; }
