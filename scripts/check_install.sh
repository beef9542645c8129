#!/bin/bash
# Installs a build to an empty folder, checks what came out, and builds and runs the examples against it.
# check_install.sh <build folder> <examples folder>
set -euo pipefail
build=$1 examples=$2
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
root=$prefix/moved

fail() { echo "check_install: $*" >&2; exit 1; }

DESTDIR=$prefix/stage cmake --install "$build" --prefix /usr/local >/dev/null
mv "$prefix/stage/usr/local" "$root"   # the package must work where it is moved to
libdir=$(dirname "$(find "$root" -name libclary.so)")

libraries=$(find "$root" -name '*.so*' -type f | wc -l)
[ "$libraries" = 1 ] || fail "$libraries shared libraries instead of one"
[ -z "$(find "$root" -name '*.a')" ] || fail "a static library was installed"

exported=$(nm -D --defined-only "$libdir/libclary.so" | awk '{print $NF}')
foreign=$(grep -v '^clary_' <<<"$exported" || true)
[ -z "$foreign" ] || fail "exported besides clary_*: $foreign"
declared=$(grep -ohE '\bclary_[a-z0-9_]+\(' "$root/include/clary/clary.h" | tr -d '(' | sort -u)
undefined=$(comm -23 <(echo "$declared") <(sort -u <<<"$exported"))
[ -z "$undefined" ] || fail "in clary.h but not exported: $undefined"

cmake -S "$examples" -B "$prefix/examples" -DCMAKE_PREFIX_PATH="$root" -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$prefix/examples" >/dev/null
"$prefix/examples/attention_c"
"$prefix/examples/attention_cpp"

export PKG_CONFIG_PATH=$libdir/pkgconfig
flags=$(pkg-config --cflags --libs clary)
# shellcheck disable=SC2086  # the flags are several words
cc -std=c11 -Wall -Wextra -Wpedantic -Werror "$examples/attention.c" -o "$prefix/by_pkg_config" $flags -lm
LD_LIBRARY_PATH=$libdir "$prefix/by_pkg_config"

"$root/bin/clary" info >/dev/null || fail "the installed command does not run"
echo "check_install: $(wc -w <<<"$declared") functions exported, examples run"
