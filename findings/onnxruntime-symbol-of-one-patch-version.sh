#!/usr/bin/env bash
# ONNX Runtime: a program that is linked against its library starts with that patch version alone.
#
# Versions: onnxruntime 1.31.0, 1.31.1 and 1.32.0, gcc 12, glibc 2.36, Linux x86-64.  Date: 2026-11-28.
# Expected: the C API is versioned by ORT_API_VERSION, asked for at run time, and a newer library
# serves programs that were built with an older one.
# Seen: its one entry point, OrtGetApiBase, has a symbol version with the patch number. The loader
# refuses every other library, also of the same minor version, before the program runs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
for version in 1.31.1 1.32.0; do
  name=onnxruntime
  [ "$version" = 1.31.1 ] && name=onnxruntime-gpu # of which PyPI has that patch
  venv/bin/pip install --quiet --no-deps --target "$version" "$name==$version"
  mkdir "lib-$version"
  cp "$version"/onnxruntime/capi/libonnxruntime.so."$version" "lib-$version/libonnxruntime.so.1"
done
cat > program.c <<'C'
#include <stdio.h>
struct base { const void *(*api)(unsigned); const char *(*version)(void); };
extern const struct base *OrtGetApiBase(void);
int main(void) {
    printf("runs with %s\n", OrtGetApiBase()->version());
    return 0;
}
C
gcc program.c -o program "lib-1.31.1/libonnxruntime.so.1"
LD_LIBRARY_PATH=lib-1.31.1 ./program | tee same
if LD_LIBRARY_PATH=lib-1.32.0 ./program > other 2>&1; then
  echo "this has changed: it runs with 1.32.0"
  exit 1
fi
cat other
grep -q "runs with 1.31.1" same
grep -q "version .VERS_1.31.1' not found" other
