#!/bin/sh
# Puts the files that the packages of packages.txt test themselves with into FOLDER/<package>/: fetch.sh FOLDER
# Needs Debian and its archive, not root. Safe to repeat: what is there is not fetched again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

lists=$PWD/.apt
if [ ! -d "$lists" ]; then   # this system's own archive, asked for sources
    mkdir -p "$lists/sources" "$lists/state/partial"
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
        if [ -f "$list" ]; then
            sed 's/^Types: deb$/Types: deb-src/; s/^deb /deb-src /' "$list" > "$lists/sources/$(basename "$list")"
        fi
    done
fi
set -- -qq -o Dir::Etc::sourcelist=- -o Dir::Etc::sourceparts="$lists/sources" \
    -o Dir::State::lists="$lists/state" -o APT::Sandbox::User=
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
updated=
for package in $(sed 's/#.*//' "$here/packages.txt"); do
    if [ -d "$package" ]; then continue; fi
    if [ -z "$updated" ]; then apt-get "$@" update; updated=yes; fi
    echo "fetch: $package" >&2
    rm -rf .new
    mkdir .new
    (cd .new && apt-get "$@" source --download-only --tar-only "$package/$release")
    for archive in .new/*.orig*.tar.*; do
        case $archive in *.asc) continue ;; esac
        tar -xf "$archive" -C .new --no-same-owner --no-same-permissions
    done
    find .new -type f ! -name '*.tar.*' -size +0 -size -20M \( -path '*/http1-corpus/*' -o -iname '*.jp*g' -o -iname '*.jpe' \
        -o -iname '*.png' -o -iname '*.apng' -o -iname '*.webp' -o -iname '*.gif' -o -iname '*.bmp' -o -iname '*.tif*' \
        -o -iname '*.ico' -o -iname '*.jp2' -o -iname '*.avif' -o -iname '*.psd' -o -iname '*.eps' \) > .list
    mkdir .kept
    number=0
    while read -r file; do   # flat, as two folders of a package may use one name
        number=$((number + 1))
        cp "$file" ".kept/$(printf '%04d' $number)-$(basename "$file")"
    done < .list
    mv .kept "$package"
    rm -rf .new .list
done
