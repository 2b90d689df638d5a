#!/usr/bin/env bash
# OpenVINO's CPU plugin gives the thread that loads it another signal stack, and leaves one behind.
#
# Versions: openvino 2026.4.1, Python 3.11, Linux x86-64.  Date: 2026-11-28.
# Expected: sigaltstack(2) of the calling thread is as it was; CPython 3.11 sets none without
# faulthandler.
# Seen: none after the import; after the first model is compiled for "CPU" the thread has an alternate
# stack of 9,968 bytes, too small for most handlers and the program's only one; other threads have
# none; once model and core are gone the thread has none again. The kernel keeps a stack a thread, so
# that dropping the last of them in another thread cannot take it away from the first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 'numpy==2.4.*'
"$folder/venv/bin/python" - <<'PYTHON'
import ctypes
import gc
import threading

libc = ctypes.CDLL(None)


class Stack(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def size(label):
    stack = Stack()
    assert libc.sigaltstack(None, ctypes.byref(stack)) == 0
    print(f"{label}: {stack.size} bytes")
    return stack.size


def elsewhere(label):
    found = []
    thread = threading.Thread(target=lambda: found.append(size(label)))
    thread.start()
    thread.join()
    return found[0]


before = size("at start")
import numpy as np
import openvino as ov

imported = size("imported")
core = ov.Core()
x = ov.opset13.parameter([2, 8], np.float32)
weights = ov.opset13.constant(np.ones((8, 8), np.float32))
model = ov.Model([ov.opset13.matmul(x, weights, False, False)], [x])
compiled = core.compile_model(model, "CPU")
after = size("compiled")
other = elsewhere("another thread")
del compiled, core, model, x, weights
gc.collect()
dropped = size("dropped")
assert (before, imported, other, dropped) == (0, 0, 0, 0), "this has changed"
assert after > 0, "this has changed"
PYTHON
